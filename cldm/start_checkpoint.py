"""Writes the checkpoint that training starts from; ``cldm.start_weights`` says which weights go where."""

from __future__ import annotations

import json
from typing import Any

import torch

from cldm.build import create_model, load_config
from cldm.growth import grow, sides
from cldm.lora_files import ALLOWED, read_loras
from cldm.options import StartCheckpointOptions
from cldm.start_weights import fill, origin_table, source_weights
from common.errors import InputError
from common.files import check_writable
from common.trust import trust
from common.weights import refuse_not_finite
from ldm.checkpoint import has_averages, load_weights, read_state_dict, save_state_dict
from ldm.checkpoint_names import SCHEDULE_BUFFERS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_start_checkpoint(options: StartCheckpointOptions) -> list[str]:
    """Builds, fills, checks and writes the start checkpoint.

    Returns:
        a line for each module, saying where its weights came from; for each weight of a smaller model that could not
        simply be taken, saying what it starts from; and one about the file.

    Raises:
        InputError: sources or configuration that do not fit or cannot be read, or a file that cannot be written.
    """
    out = options.out
    if out.suffix not in (".safetensors", ".ckpt"):
        raise InputError(f"‹out› {out}: end it with .safetensors or .ckpt")
    check_writable(out.parent, "‹out›")
    trust(options.trust)
    config = load_config(options.config, options.classes)
    models = None if options.grow is None else sides(options.grow, options.config, options.classes)
    averaged = [source for source in options.source if options.use_ema and has_averages(source)]
    if options.use_ema and not averaged:
        raise InputError("‹use_ema›: no ‹source› has EMA weights (model_ema.*); leave it out")
    for source in options.source:  # a bad one is refused before the model, which takes minutes, is built
        read_state_dict(source, source in averaged)
    torch.manual_seed(options.seed)
    without_lora: dict[str, Any] = {"lora": None} if options.merge_lora else {}
    model = create_model(config, **without_lora)
    own = model.state_dict()
    state, origin = source_weights(own, options.source, options.reset_branches, averaged)
    allow = [module for module in options.allow_mismatch if module != ALLOWED]
    grown = [] if models is None else grow(state, origin, own, models, allow)
    loras = read_loras(options, own, config.model.params)
    for lora in loras:  # before the branches become copies of the encoder
        state.update(lora.changed(state))
    fill(state, origin, own)
    load_weights(model, state, allow, name=" + ".join(map(str, options.source)))

    dtype = DTYPES[options.precision]
    weights = {
        key: value.to(dtype) if value.is_floating_point() and key not in SCHEDULE_BUFFERS else value
        for key, value in own.items()
    }
    if "nan" not in options.allow_mismatch:
        refuse_not_finite(
            weights, f"‹precision› {options.precision}", "beyond what it holds: take ‹precision› bf16 or fp32"
        )
    made_from = {"sources": json.dumps([source.name for source in options.source]), "seed": str(options.seed)}
    if loras:
        made_from["lora"] = json.dumps([[lora.path.name, lora.scale] for lora in loras])
    if options.grow is not None:
        made_from["grow"] = options.grow.name
    save_state_dict(weights, out, made_from)

    used = {key: what for key, what in origin.items() if key in own and state[key].numel() == own[key].numel()}
    lines = []
    for module, counts in origin_table(used, own).items():
        largest_first = sorted(counts.items(), key=lambda item: -item[1])
        lines.append(f"{module}: " + ", ".join(f"{count} {what}" for what, count in largest_first))
    if plain := [str(source) for source in options.source if options.use_ema and source not in averaged]:
        grown.append(f"{', '.join(plain)}: no EMA weights, taken as is; averages of {', '.join(map(str, averaged))}")
    numbers = sum(value.numel() for value in own.values())
    return [
        *lines,
        *grown,
        *(lora.line() for lora in loras),
        f"{out}: {len(own)} tensors, {numbers:,} numbers, {options.precision}",
    ]

"""Makes the checkpoint that training starts from.

Stable Diffusion's weights (and a ControlNet's, if given) go to where they belong, and the U-Net's encoder is copied
into both control branches. What is new adds nothing yet: the start checkpoint predicts what Stable Diffusion predicts.

  python -m scripts.init_checkpoint --config configs/model/tisynth_v15.yaml --source v1-5-pruned.ckpt --out start.ckpt
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cldm.build import create_model
from ldm.checkpoint import load_weights, read_state_dict, save_state_dict
from ldm.checkpoint_names import BRANCHES, SCHEDULE_BUFFERS, UNET, module_of
from ldm.util import InputError, check_writable
from scripts.cli import parser, run

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COPIED = ("time_embed", "label_emb", "input_blocks", "middle_block")  # the U-Net's encoder
# all-in-attention: which branch's features each new attention reads
READS = {"attn00_ls_trainable": "ssl_stage_model", "attn01_ssl_trainable": "control_model"}


def read_sources(sources: list[Path], reset_branches: bool, use_ema: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of all sources, and the source of each; a later source wins where two have the same."""
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for source in sources:
        weights = read_state_dict(source, use_ema)
        if reset_branches:
            weights = {key: value for key, value in weights.items() if key.split(".")[0] not in BRANCHES}
        state |= weights
        origin |= dict.fromkeys(weights, f"from {source}")
    return state, origin


def fill(state: dict[str, Tensor], origin: dict[str, str], own: Mapping[str, Tensor]) -> None:
    """Adds what Stable Diffusion lacks: branches and new attention that leave its prediction as it is.

    Args:
        state: weights found so far; completed in place.
        origin: where each comes from; completed in place.
        own: the model's weights after its own random initialisation.
    """

    def add(key: str, value: Tensor, what: str) -> None:
        state[key], origin[key] = value, what

    for branch in BRANCHES:
        prefix = f"{branch}.input_hint_block."
        hint_end = prefix + str(max((int(key.split(".")[2]) for key in own if key.startswith(prefix)), default=0))
        for key in own:
            inside = key.removeprefix(branch + ".")
            if inside == key or key in state:
                continue
            part = inside.split(".")[0]
            if part in COPIED and f"{UNET}.{inside}" in state:
                add(key, state[f"{UNET}.{inside}"], "copied from the U-Net's encoder")
            elif part in ("zero_convs", "middle_block_out") or key.startswith(hint_end + "."):
                add(key, torch.zeros_like(own[key]), "zero")
            elif part == "input_hint_block":
                add(key, own[key], "new, random")
    # x + W_out softmax(Q K^T) V + b adds nothing while the features, and so V, are zero and b is. W_out is then
    # random: were it zero too, neither W_out nor the zero convolutions would ever have a gradient. A branch that brings
    # features (a trained ControlNet) needs W_out = 0 instead.
    silent = {branch: _silent(state, branch) for branch in BRANCHES}
    for key in own:
        if key in state or "_trainable." not in key or not key.startswith(UNET + "."):
            continue
        attention = next((name for name in READS if f".{name}." in key), None)
        output = ".to_out.0." in key
        if output and (key.endswith(".bias") or not silent[READS[str(attention)]]):
            add(key, torch.zeros_like(own[key]), "zero")
        else:
            add(key, own[key], "new, random" if attention else "new, identity")


def _silent(state: Mapping[str, Tensor], branch: str) -> bool:
    """Whether a branch's features are all zero: its zero convolutions are."""
    last = (f"{branch}.zero_convs.", f"{branch}.middle_block_out.")
    return not any(bool(value.any()) for key, value in state.items() if key.startswith(last))


def make(args: argparse.Namespace) -> None:
    """Builds, fills, checks and writes the start checkpoint."""
    if args.out.suffix not in (".safetensors", ".ckpt"):
        raise InputError(f"--out {args.out}: end it with .safetensors or .ckpt")
    check_writable(args.out.parent, "--out")
    state, origin = read_sources(args.source, args.reset_branches, args.use_ema)
    torch.manual_seed(args.seed)
    model = create_model(args.config)
    own = model.state_dict()
    fill(state, origin, own)
    names = " + ".join(map(str, args.source))
    load_weights(model, state, args.allow_mismatch, name=names)

    table: dict[str, Counter[str]] = {}
    for key in own:
        if key not in SCHEDULE_BUFFERS:
            fits = key in state and state[key].numel() == own[key].numel()
            table.setdefault(module_of(key), Counter())[origin[key] if fits else "new, random (does not fit)"] += 1
    for module, counts in table.items():
        print(f"{module}: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))

    precision = PRECISIONS[args.precision]
    halved = {
        key: value.to(precision) if value.is_floating_point() and key not in SCHEDULE_BUFFERS else value
        for key, value in own.items()
    }
    made_from = {"sources": json.dumps([source.name for source in args.source]), "seed": str(args.seed)}
    save_state_dict(halved, args.out, made_from)
    print(f"{args.out}: {len(own)} tensors, {sum(value.numel() for value in own.values()):,} numbers, {args.precision}")


def main() -> None:
    """Parses the command line."""
    options = parser(__doc__ or "")
    options.add_argument("--config", type=Path, required=True, help="YAML file of the model")
    options.add_argument(
        "--source",
        type=Path,
        nargs="+",
        required=True,
        help="checkpoints to take weights from (.ckpt, .safetensors, diffusers folder): Stable Diffusion, and a "
        "ControlNet or TISynth for the branches; where two have the same weights, the later one's are taken",
    )
    options.add_argument("--out", type=Path, required=True, help="file to write, .safetensors or .ckpt (Lightning)")
    options.add_argument("--seed", type=int, default=0, help="of the new weights that are random")
    options.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the weights in the file")
    options.add_argument(
        "--reset_branches",
        "--reset-branches",
        action="store_true",
        help="copy the U-Net's encoder even where a source has branches",
    )
    options.add_argument("--use_ema", action="store_true", help="take the sources' EMA weights (model_ema.*)")
    options.add_argument(
        "--allow_mismatch",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules that the sources may lack, have more of or have in another shape; these stay random; all: any",
    )
    args = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(args)


if __name__ == "__main__":
    run(main)

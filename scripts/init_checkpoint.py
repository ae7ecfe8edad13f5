"""Makes the checkpoint that training starts from.

Stable Diffusion's weights (and a ControlNet's, if given) go to where they belong, and the U-Net's encoder is copied
into both control branches. What is new adds nothing yet: the start checkpoint predicts what Stable Diffusion predicts.

  python -m scripts.init_checkpoint --config configs/model/tisynth_v15.yaml --source v1-5-pruned.ckpt --out start.ckpt
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch

from cldm.build import create_model, load_config
from cldm.start_weights import origin_table, start_weights
from common.command import add_trust, parser, run
from common.converters import random_seed
from common.errors import InputError
from common.files import check_writable
from common.trust import trust
from common.weights import refuse_not_finite
from ldm.checkpoint import load_weights, read_state_dict, save_state_dict
from ldm.checkpoint_names import SCHEDULE_BUFFERS

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make(args: argparse.Namespace) -> None:
    """Builds, fills, checks and writes the start checkpoint."""
    if args.out.suffix not in (".safetensors", ".ckpt"):
        raise InputError(f"--out {args.out}: end it with .safetensors or .ckpt")
    check_writable(args.out.parent, "--out")
    load_config(args.config)
    for source in args.source:  # refuses a bad one before the model is built
        read_state_dict(source, args.use_ema)
    torch.manual_seed(args.seed)
    model = create_model(args.config)
    own = model.state_dict()
    state, origin = start_weights(model, args.source, args.reset_branches, args.use_ema)
    load_weights(model, state, args.allow_mismatch, name=" + ".join(map(str, args.source)))
    used = {key: what for key, what in origin.items() if key in own and state[key].numel() == own[key].numel()}
    for module, counts in origin_table(used, own).items():
        largest_first = sorted(counts.items(), key=lambda item: -item[1])
        print(f"{module}: " + ", ".join(f"{count} {what}" for what, count in largest_first))

    precision = PRECISIONS[args.precision]
    weights = {
        key: value.to(precision) if value.is_floating_point() and key not in SCHEDULE_BUFFERS else value
        for key, value in own.items()
    }
    if "nan" not in args.allow_mismatch:
        refuse_not_finite(
            weights, f"--precision {args.precision}", "beyond what it holds: take --precision bf16 or fp32"
        )
    made_from = {"sources": json.dumps([source.name for source in args.source]), "seed": str(args.seed)}
    save_state_dict(weights, args.out, made_from)
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
    options.add_argument("--seed", type=random_seed, default=0, help="of the new weights that are random")
    options.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the weights in the file")
    options.add_argument(
        "--reset-branches",
        "--reset-branches",
        action="store_true",
        help="copy the U-Net's encoder even where a source has branches",
    )
    options.add_argument("--use-ema", action="store_true", help="take the sources' EMA weights (model_ema.*)")
    options.add_argument(
        "--allow-mismatch",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules that the sources may lack, have more of or have in another shape; these stay random; all: any; "
        "nan: take weights that are NaN or infinite",
    )
    add_trust(options)
    args = options.parse_args()
    trust(args.trust)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(args)


if __name__ == "__main__":
    run(main)

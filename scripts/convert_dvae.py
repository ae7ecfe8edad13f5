"""Converts dVAE weights without running code from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from common import command as cli
from common.errors import InputError
from common.files import atomic_path, check_writable
from gss.dvae import DVAE, dvae_entries, save_dvae
from gss.weights import read_pickled_module, read_state_dict

DESCRIPTION = """Converts dVAE weights to .safetensors (or .pth), once:

  python -m scripts.convert_dvae --encoder encoder.pkl --decoder decoder.pkl --out dvae.safetensors
  python -m scripts.convert_dvae --checkpoint gss-ff.pth --out dvae.safetensors

encoder.pkl and decoder.pkl are DALL-E's published files, pickled modules: only their tensors are read, code is refused.
From a GSS checkpoint (or a state dict of a dVAE) its dVAE is taken."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("--encoder", default=None, help="published encoder.pkl")
    parser.add_argument("--decoder", default=None, help="published decoder.pkl")
    parser.add_argument("--checkpoint", default=None, help="GSS checkpoint, or state dict of a dVAE")
    parser.add_argument("--out", required=True, help="file to write (.safetensors or .pth)")
    args: argparse.Namespace = parser.parse_args(argv)
    if (args.checkpoint is None) == (args.encoder is None) or (args.encoder is None) != (args.decoder is None):
        raise InputError("give either --encoder and --decoder, or --checkpoint")
    check_writable(Path(args.out).parent, "--out")

    state: dict[str, Tensor] = {}
    if args.checkpoint:
        state = dvae_entries(read_state_dict(args.checkpoint))
    else:
        for part in ("encoder", "decoder"):
            state |= {f"{part}.{key}": value for key, value in read_pickled_module(getattr(args, part)).items()}
    dvae = DVAE(state)  # checks names and shapes
    with atomic_path(args.out) as temporary:
        save_dvae(dvae, temporary)
    print(f"{len(dvae.state_dict())} tensors written to {args.out}")


if __name__ == "__main__":
    cli.run(main)

"""Joins a GSS-FF model with a way back (GSS-FT-W) that was trained on an earlier checkpoint of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from common.errors import InputError
from common.files import atomic_path, check_writable
from gss.weights import read_state_dict
from scripts import cli

DESCRIPTION = """Joins the backbone and token branch of a GSS-FF checkpoint with the way back, maskige to mask, of a
GSS-FT-W checkpoint (trained, say, on an earlier GSS-FF checkpoint). The result is a GSS-FT-W checkpoint.

  python -m scripts.merge_gss --ff gss-ff.pth --ftw gss-ft-w.pth --out merged.pth"""

WAY_BACK = tuple(
    f"decode_head.{name}." for name in ("projection", "post_transformer_block", "cls_segmap", "post_swin_ln")
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("--ff", required=True, help="GSS-FF checkpoint: backbone, token branch and dVAE")
    parser.add_argument("--ftw", required=True, help="GSS-FT-W checkpoint: the way back")
    parser.add_argument("--out", required=True, help="GSS-FT-W checkpoint to write (.pth)")
    args = parser.parse_args(argv)
    check_writable(Path(args.out).parent, "--out")
    ff, ftw = read_state_dict(args.ff), read_state_dict(args.ftw)
    if not any(key.startswith(WAY_BACK) for key in ftw):
        raise InputError(f"--ftw {args.ftw}: has no way back ({', '.join(WAY_BACK)}); is it a GSS-FF checkpoint?")
    merged = {}
    for key, value in ftw.items():
        source = ftw if key.startswith(WAY_BACK) else ff
        if key not in source:
            raise InputError(f"--ff {args.ff}: no entry {key}, which --ftw has; the two are of different models")
        if source[key].shape != value.shape:
            shapes = f"{tuple(source[key].shape)} in --ff, {tuple(value.shape)} in --ftw"
            raise InputError(f"--ff {args.ff}: {key} is {shapes}; the two are of different models")
        merged[key] = source[key]
    with atomic_path(args.out) as temporary:
        torch.save({"state_dict": merged, "meta": {"ff": str(args.ff), "ftw": str(args.ftw)}}, temporary)
    back = sum(key.startswith(WAY_BACK) for key in merged)
    print(f"{len(merged) - back} entries of {args.ff} and {back} of {args.ftw} written to {args.out}")


if __name__ == "__main__":
    cli.run(main)

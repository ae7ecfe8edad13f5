"""Joins a GSS-FF model with a way back (GSS-FT-W) that was trained on an earlier checkpoint of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import command as cli
from common.errors import InputError
from common.files import atomic_path, check_writable, only_writer_of, room_for
from gss.weights import read_checkpoint, read_state_dict

DESCRIPTION = """Joins the backbone and token branch of a GSS-FF checkpoint with the way back, maskige to mask, of a
GSS-FT-W checkpoint (trained, say, on an earlier GSS-FF checkpoint). The result is a GSS-FT-W checkpoint.

  python -m scripts.merge_gss --ff gss-ff.pth --ftw gss-ft-w.pth --out merged.pth

With --backbone-type it is the published merge, which adds to the first checkpoint what it lacks of the second, and
keeps all that it has, its meta information and optimizer too: `swin` adds every such entry, `hrnet` those of the
decode head that are not of the pixel branch.

  python -m scripts.merge_gss --model-path gss-ff.pth --post-model-path post.pth --target-path merged.pth \\
      --backbone-type swin"""

WAY_BACK = tuple(
    f"decode_head.{name}." for name in ("projection", "post_transformer_block", "cls_segmap", "post_swin_ln")
)
KEPT = ("meta", "optimizer")


def join(ff: dict[str, Tensor], ftw: dict[str, Tensor], args: Any) -> dict[str, Tensor]:
    """A GSS-FT-W model's entries: the way back of ``ftw``, all else of ``ff``.

    Raises:
        InputError: no way back, or the two are of different models.
    """
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
    return merged


def add(ff: dict[str, Tensor], ftw: dict[str, Tensor], args: Any) -> dict[str, Tensor]:
    """The published merge: all of ``ff``, and what it lacks of ``ftw``.

    Raises:
        InputError: nothing is lacking.
    """
    lacking = {key: value for key, value in ftw.items() if key not in ff}
    if args.backbone_type == "hrnet":
        lacking = {key: value for key, value in lacking.items() if "decode_head" in key and "pixel" not in key}
    if not lacking:
        raise InputError(f"--post-model-path {args.ftw}: nothing in it that {args.ff} lacks; are the two exchanged?")
    return {**ff, **lacking}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument(
        "--ff", "--model-path", required=True, help="GSS-FF checkpoint: backbone, token branch and dVAE"
    )
    parser.add_argument("--ftw", "--post-model-path", required=True, help="GSS-FT-W checkpoint: the way back")
    parser.add_argument("--out", "--target-path", required=True, help="checkpoint to write (.pth)")
    parser.add_argument(
        "--backbone-type",
        choices=("swin", "hrnet"),
        default=None,
        help="the published merge for this backbone (default: a checked GSS-FT-W model)",
    )
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")
    check_writable(out.parent, "--out")
    ff, ftw = read_state_dict(args.ff), read_state_dict(args.ftw)
    merged = (add if args.backbone_type else join)(ff, ftw, args)
    content: dict[str, Any] = {"state_dict": merged, "meta": {"ff": str(args.ff), "ftw": str(args.ftw)}}
    if args.backbone_type:
        first = read_checkpoint(args.ff)
        content = {"state_dict": merged, **{key: first[key] for key in KEPT if key in first}}
    with only_writer_of(out, "--out"), room_for("--out", out.parent), atomic_path(out) as temporary:
        torch.save(content, temporary)
    taken = sum(merged[key] is ftw.get(key) for key in merged)
    print(f"{len(merged) - taken} entries of {args.ff} and {taken} of {args.ftw} written to {args.out}")


if __name__ == "__main__":
    cli.run(main)

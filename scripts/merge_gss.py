r"""Joins the backbone and token branch of a GSS-FF checkpoint with the way back, maskige to mask, of a
GSS-FT-W checkpoint (trained, say, on an earlier GSS-FF checkpoint). The result is a GSS-FT-W checkpoint.

  python -m scripts.merge_gss --ff gss-ff.pth --ftw gss-ft-w.pth --out merged.pth

With --backbone-type it is the published merge, which adds to the first checkpoint what it lacks of the second, and
keeps all that it has, its meta information and optimizer too: `swin` adds every such entry, `hrnet` those of the
decode head that are not of the pixel branch.

  python -m scripts.merge_gss --model-path gss-ff.pth --post-model-path post.pth --target-path merged.pth \
      --backbone-type swin
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from gss.conversion import MergeOptions, merge_checkpoints


def main(words: Sequence[str] | None = None) -> None:
    """Parses, merges, tells."""
    options = read_options(MergeOptions, __doc__ or "", words)
    entries = merge_checkpoints(options)
    print(f"{entries['ff']} entries of {options.ff} and {entries['ftw']} of {options.ftw} written to {options.out}")


if __name__ == "__main__":
    run(main)

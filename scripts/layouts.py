r"""Makes new masks of real pieces, moved, mirrored, turned, scaled, pasted from other scenes, towards class shares.

  python -m scripts.layouts --mask-path data/label_train --classes MBRSC --out data/layouts --data-root data \
      --count 500 --towards building=0.2 road=0.15

Writes OUT/label, OUT/items.json (masks and prompts, to which scripts/allot.py gives references; paths are relative to
--data-root, where the references lie, too), OUT/layouts.json (what each was made of, and the shares reached) and
OUT/layouts.png.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from post_processing.layout_folder import LayoutsOptions, make_layouts


def main(words: Sequence[str] | None = None) -> None:
    """Parses, makes, tells."""
    print(make_layouts(read_options(LayoutsOptions, __doc__ or "", words)))


if __name__ == "__main__":
    run(main)

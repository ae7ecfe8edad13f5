r"""Brings data of other formats into this project's layout: folders of images and masks, lists, classes, a report.

The format is found by what lies there, or said with --from. Masks may be ids, colors, JPEGs of either, polygons (COCO,
LabelMe, map files) or runs of pixels. Nothing is overwritten, and OUT is whole or not there. Each format:
docs/your_data.md.

  python -m scripts.import_data exported --out DATA
  python -m scripts.import_data LoveDA --out DATA --tile 512 --overlap 64 --references unlabeled
  python -m scripts.import_data photos --out DATA --images photos/rgb --masks photos/annotated --classes labelmap.txt
  python -m scripts.import_data tiffs --out DATA --masks parcels.gpkg --class-field landuse --background other
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from importing.options import ImportOptions
from importing.run import import_data


def main(words: Sequence[str] | None = None) -> None:
    """Parses, imports, tells."""
    print(import_data(read_options(ImportOptions, __doc__ or "", words)).summary)


if __name__ == "__main__":
    run(main)

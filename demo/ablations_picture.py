"""One picture of demo/ablations.sh's arms: their contact sheets' painted columns beside each other, named on top."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.files import atomic_path

TILE, GAP, HEAD = 128, 4, 18  # pixels of a contact sheet's cell, between cells, and of its first line of words


def column(sheet: Image.Image, index: int, rows: int) -> np.ndarray:
    """A column's first cells, (rows (TILE + GAP), TILE, 3)."""
    left = index * (TILE + GAP)
    return np.array(sheet.crop((left, HEAD, left + TILE, HEAD + rows * (TILE + GAP))).convert("RGB"))


def main() -> None:
    """Writes the picture: mask, real image, then each arm's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of demo/ablations.sh")
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--picture", type=Path, required=True, help="file to write")
    parser.add_argument("--rows", type=int, default=6)
    options = parser.parse_args()
    sheets = {arm: Image.open(options.out / f"{arm}.png") for arm in options.arms}
    first = next(iter(sheets.values()))
    columns = {"mask": column(first, 0, options.rows), "real": column(first, 3, options.rows)}
    columns |= {arm: column(sheet, 2, options.rows) for arm, sheet in sheets.items()}
    height, width = options.rows * (TILE + GAP), len(columns) * (TILE + GAP) - GAP
    picture = Image.new("RGB", (width, HEAD + height), "white")
    draw = ImageDraw.Draw(picture)
    for place, (name, pixels) in enumerate(columns.items()):
        draw.text((place * (TILE + GAP) + 2, 3), name.replace("_", " "), fill="black")
        picture.paste(Image.fromarray(pixels), (place * (TILE + GAP), HEAD))
    with atomic_path(options.picture) as path:
        picture.save(path, quality=85)


if __name__ == "__main__":
    main()

"""Says so where masks are painted at another size than they have: images are then resized, and blurred.

python -m demo.sizes DATA/label_train 256
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from common.decoding import stored_size
from common.pairing import MASK_SUFFIXES, list_files


def main(words: list[str]) -> None:
    """Prints a line where the masks of a folder are not squares of this side."""
    folder, side = Path(words[0]), int(words[1])
    sizes = Counter(filter(None, map(stored_size, list_files(folder, MASK_SUFFIXES, str(folder)).values())))
    if sizes and {*sizes} != {(side, side)}:
        width, height = sizes.most_common(1)[0][0]
        print(
            f"{folder}: most masks are {width} x {height} px (width x height), and images are painted at {side} x "
            f"{side} and resized: blurred, or squeezed. Cut the data to {side} px (import --tile {side}), or set SIZE",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(sys.argv[1:])

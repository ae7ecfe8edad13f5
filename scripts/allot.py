r"""Writes a list for a synthesis: which masks are painted how often, and after which references.

Masks whose classes a segmentor finds hard come more often (FreeMask's ranks), and each gets references that show a
similar mix of classes and look like the mask's own image, as far as that is known.

  python -m scripts.allot --data-root data --masks data/train_set_items.json --references data/ref_img \
      --classes data/classes.json --metrics real/metrics.json --segmentor real/tiny.py real/iter_1000.pth \
      --total 400 --not-among data/img_test --out data/allotted.json
  bash inference.sh ... --train-txt-file data/allotted.json     # the list says the seeds of each mask
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bands import Bands
from common.classes import load_class_table
from common.command import read_options, run
from common.errors import InputError
from post_processing.allot import AllotOptions, FoundClasses, allot


def classes_found(options: AllotOptions) -> tuple[FoundClasses | None, Bands | None]:
    """What the segmentor that the options name finds in images, and what it states of their bands.

    Raises:
        InputError: it cannot be used, or tells other classes apart.
    """
    if options.segmentor is None:
        return None, None
    from segmentation.inference import open_segmentor, segment  # mmseg takes seconds to import

    config, weights = options.segmentor
    segmentor = open_segmentor(config, weights, options, options.classes, options.device)
    classes = load_class_table(options.classes).names
    if segmentor.num_classes != len(classes):
        raise InputError(f"‹segmentor› {config}: has {segmentor.num_classes} classes, ‹classes› {len(classes)}")

    def found(files: Sequence[Path]) -> NDArray[Any]:
        size = segmentor.batch_size()
        batches = [range(start, min(start + size, len(files))) for start in range(0, len(files), size)]
        pixels = np.zeros((len(files), segmentor.num_classes), dtype=np.int64)
        for one in segment(segmentor, [(file, None) for file in files], batches, options.num_workers):
            pixels[one.index] = np.bincount(one.classes.ravel(), minlength=256)[: segmentor.num_classes]
        return pixels

    return found, segmentor.bands


def main(words: Sequence[str] | None = None) -> None:
    """Parses, allots, tells."""
    options = read_options(AllotOptions, __doc__ or "", words)
    print(allot(options, *classes_found(options)))


if __name__ == "__main__":
    run(main)

r"""Keeps the filtered images that help: a training set beside the real images. There are two rules.

--rule class     keeps an image if it shows a poorly recognized class, or if over --min-valid of its pixels survived
--rule hardness  keeps more images of a mask the harder its classes are on real images: of n images of the mask of rank
                 i of N (1: easiest), min(1 + round(n * i / N), n), drawn at random; each mask has its own n.

  python -m scripts.resample --filtered-mask-path out/filtered --syn-img-path out/images --out-dir out/resampled \
      --classes MBRSC --inaccurate "road,vegetation"
Poorly recognized classes from a segmentor's metrics (scripts/segmentor.py test): --metrics metrics.json --below 0.5.
Writes OUT/resampled_img, OUT/resampled_label, and a report.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from post_processing.resample import ResampleOptions, resample


def main(words: Sequence[str] | None = None) -> None:
    """Parses, re-samples, tells."""
    print(resample(read_options(ResampleOptions, __doc__ or "", words)).summary)


if __name__ == "__main__":
    run(main)

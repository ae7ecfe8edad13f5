r"""Predicts the masks of images: --out/masks/<name>.png of 8 bits, with the ids that the class table's
mask files have, as filter.sh writes them (LoveDA: 1..7); --out/classes.json says which, for other commands' --classes.

  python -m scripts.segmentor predict work_dirs/tiny/tiny.py --load-from work_dirs/tiny/iter_1000.pth \
      --images data/unlabeled --out predicted --overlay
With --overlay, --out/overlays/<name>.png shows image and classes in one; with --probabilities,
--out/probabilities/<name>.npy holds each class's probability, float16 (classes, height, width).
Several processes: torchrun --nproc-per-node 4 -m scripts.segmentor predict ... A stopped run goes on with the same
command; images that were changed meanwhile are predicted again.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from common.ranks import is_first
from common.segmentor_options import PredictOptions


def main(words: Sequence[str] | None = None) -> None:
    """Parses, predicts, tells."""
    options = read_options(PredictOptions, __doc__ or "", words, "predict")
    from segmentation.prediction import predict  # mmseg takes seconds to import: after the options

    images = predict(options)
    if is_first():
        print(f"{images} masks in {options.out / 'masks'}")


if __name__ == "__main__":
    run(main)

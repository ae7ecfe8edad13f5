r"""Sets pixels of synthesized images to 255 in their masks that a segmentor trained on real images finds wrong.

This is FreeMask's rule: the segmentor's cross-entropy, averaged for each class over all real pixels, says what is
normal; a synthesized pixel whose loss exceeds margin x its class's mean becomes 255. Synthesized images are named
<mask name>_seed_<seed>.jpg or .png.

  python -m scripts.filter work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth \
      --real-img-path data/img_train --real-label-path data/label_train \
      --syn-img-path out/images --syn-mask-path data/label_train --filtered-mask-path out/filtered
Another margin, from losses that --save-loss wrote, without the segmentor:
  python -m scripts.filter --from-loss out/loss --syn-mask-path data/label_train --filtered-mask-path out/filtered_2 \
      --tolerance-margin 2
Several GPUs: torchrun --nproc-per-node 4 -m scripts.filter ... A stopped run goes on with the same command.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from post_processing.filter import FilterOptions, filter_images
from post_processing.filter_losses import PixelLosses


def segmentor_of(options: FilterOptions) -> PixelLosses:
    """The segmentor that the options name."""
    from segmentation.inference import open_segmentor  # mmseg takes seconds to load, which --from-loss need not wait

    assert options.config is not None and options.checkpoint is not None
    return open_segmentor(options.config, options.checkpoint, options, options.classes, options.device)


def main(words: Sequence[str] | None = None) -> None:
    """Parses, filters, tells."""
    options = read_options(FilterOptions, __doc__ or "", words)
    if done := filter_images(options, lambda: segmentor_of(options)):
        print(done.summary)


if __name__ == "__main__":
    run(main)

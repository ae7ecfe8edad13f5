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
Instead of 255 (--treatment): relabel, where the segmentor, or it and --ensemble WEIGHTS of other seeds on average, is
sure of another class; or weight, a map exp(-loss / limit) a mask, for resample.sh --weight-map-path and then
scripts.segmentor train --loss-weights:
  python -m scripts.filter ... --filtered-mask-path out/relabeled --treatment relabel --sure 0.9 --ensemble other.pth
  python -m scripts.filter ... --filtered-mask-path out/weighted --treatment weight --weight-map-path out/weights
Several GPUs: torchrun --nproc-per-node 4 -m scripts.filter ... A stopped run goes on with the same command.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from post_processing.filter import FilterOptions, filter_images
from post_processing.filter_losses import PixelLosses


def segmentor_of(options: FilterOptions) -> PixelLosses:
    """The segmentor that the options name, with the others of its ensemble."""
    from segmentation.ensemble import Ensemble  # mmseg takes seconds to load, which --from-loss need not wait
    from segmentation.inference import open_segmentor

    config, checkpoint = options.config, options.checkpoint
    assert config is not None and checkpoint is not None
    weights = (checkpoint, *options.ensemble)
    return Ensemble(tuple(open_segmentor(config, one, options, options.classes, options.device) for one in weights))


def main(words: Sequence[str] | None = None) -> None:
    """Parses, filters, tells."""
    options = read_options(FilterOptions, __doc__ or "", words)
    if done := filter_images(options, lambda: segmentor_of(options)):
        print(done.summary)


if __name__ == "__main__":
    run(main)

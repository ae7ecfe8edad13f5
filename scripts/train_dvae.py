r"""Trains a discrete VAE with DALL-E's structure on the maskiges of masks, for users without DALL-E's
weights and for palettes it has never seen.

  python -m scripts.train_dvae --masks data/mbrsc/label_train --palette mbrsc --out work_dirs/dvae_mbrsc.safetensors \
      --test-masks data/mbrsc/label_test

Tokens are learned by vector quantization (van den Oord et al., "Neural Discrete Representation Learning", 2017). The
state is kept beside --out while training; SIGTERM and Ctrl-C save it at the next step, and the same command goes on
there, to the same weights as an unbroken run.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from gss.dvae_training import DvaeTrainingOptions, train_dvae


def main(words: Sequence[str] | None = None) -> None:
    """Parses, trains, tells."""
    options = read_options(DvaeTrainingOptions, __doc__ or "", words)
    trained = train_dvae(options)
    for class_id, iou in enumerate(trained.class_iou.tolist()):
        print(f"  class {class_id:3}  IoU {iou:.4f}")
    print(f"round trip of {trained.tested} masks: mIoU {trained.class_iou.nanmean():.4f}  ({options.out})")


if __name__ == "__main__":
    run(main)

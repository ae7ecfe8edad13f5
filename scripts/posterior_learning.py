"""Learns a palette for N classes and one color more for ignored pixels (GSS, CVPR 2023, section 3.2).

  python -m scripts.posterior_learning --dataset ade20k --out gss/palettes/ade20k.json --picture ade20k.png
  python -m scripts.posterior_learning --classes classes.json --d-vae dvae.safetensors --masks label_train --out my.json

Method `spread` maximizes the smallest distance between two colors; `grid` is the published color grid with jitter.
Both count with integers: a seed gives the same colors on every machine.
With --d-vae, classes that the round trip mask -> tokens -> mask confuses then change colors until that stops helping
(which the last bits of a dVAE's sums may decide).
The result is a class table (classes, palette, ignore_index) with the field ignore_color.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import read_options, run
from gss.posterior_learning import PaletteSearchOptions, learn_palette


def main(words: Sequence[str] | None = None) -> None:
    """Parses, learns, tells."""
    options = read_options(PaletteSearchOptions, __doc__ or "", words)
    learned = learn_palette(options)
    means = "round trip mIoU " + ("through the dVAE" if options.d_vae else "through noise of std 20")
    for title, row in learned.report.items():
        print(f"{title:32} smallest distance {row['min_distance']:6.2f}  {means} {row['round_trip_miou']:.4f}")
    if learned.class_iou is not None:
        for name, iou in zip(learned.names, learned.class_iou.tolist(), strict=True):
            print(f"  {name:32} IoU {iou:.4f}")


if __name__ == "__main__":
    run(main)

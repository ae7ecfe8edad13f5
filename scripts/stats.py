r"""Measures the bands of a training set once: what range of their numbers a model is to read, and how it writes them.

  python -m scripts.stats --items data/train.json --data-root data --rgb 4 3 2 --out bands.yaml
  python -m scripts.stats --images data/img_train --take 4 3 2 --out bands.yaml
  python -m scripts.stats --images data/img_train --range 0 10000 --factor 4 --out bands.yaml

Training takes the file by --bands, which python -m scripts.inference, .segmentor and .contact_sheet have as well. With
--factor it also makes the model one of these bands, without a VAE. docs/geotiff.md says more.
"""

from __future__ import annotations

from cldm.band_statistics import StatsOptions, write_stats
from common import command as cli


def main() -> None:
    """Measures, writes, tells."""
    options = cli.read_options(StatsOptions, __doc__ or "")
    bands = write_stats(options)
    for number, (low, high) in zip(bands.numbers, bands.ranges, strict=True):
        name = f" ({bands.names[bands.numbers.index(number)]})" if bands.names else ""
        print(f"band {number}{name}: {low:g} to {high:g}")
    print(options.out)


if __name__ == "__main__":
    cli.run(main)

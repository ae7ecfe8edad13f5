"""Draws what images are good for against what they cost (docs/speed_and_use.md).

python -m demo.use_figure --out docs/presets.svg published=1.00:published_scores whole=0.41:whole_scores ...

NAME=COST:FOLDER; cost as a share of the published way's operations (scripts.benchmark --flops), FOLDER the --out-dir of
scripts.evaluate_samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from evaluation.figures import JOINT, svg_text


def main(words: Sequence[str] | None = None) -> None:
    """Draws mIoU of the masks in painted images by cost; the real images' is a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    parser.add_argument("points", nargs="+", metavar="NAME=COST:FOLDER")
    options = parser.parse_args(words)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for word in options.points:
        name, _, rest = word.partition("=")
        cost, _, folder = rest.partition(":")
        report = json.loads((Path(folder) / "evaluation.json").read_text())
        found = 100 * report["synthesized"]["mIoU"]
        axes.plot(float(cost), found, "o", color=JOINT)
        axes.annotate(name, (float(cost), found), xytext=(7, -3), textcoords="offset points", fontsize=8)
        real = 100 * report["real"]["mIoU"]
    axes.axhline(real, color="black", linewidth=0.8)
    axes.annotate("in real images", (0.05, real), xytext=(0, -11), textcoords="offset points", fontsize=8)
    axes.set(xlabel="operations, as a share of the published way's", ylabel="mIoU of the masks (%)", xlim=(0, 1.2))
    axes.set_ylim(bottom=min(40.0, axes.get_ylim()[0]))
    axes.spines[["top", "right"]].set_visible(False)
    options.out.write_text(svg_text(figure))


if __name__ == "__main__":
    main()

"""Draws what images are good for against what they cost (docs/speed_and_use.md).

python -m demo.use_figure --out docs/presets.svg published=1.00:published_scores whole=0.41:whole_scores ...

NAME=COST:FOLDER; cost as a share of the published way's operations (scripts.benchmark --flops), FOLDER the --out-dir of
scripts.evaluate_samples. --comparison comparison.json of scripts.compare with arms synthesized:NAME adds what
segmentors learn of the images, beside real ones of the same masks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from evaluation.figures import JOINT, svg_text


def main(words: Sequence[str] | None = None) -> None:
    """Draws mIoU of the masks in painted images by cost, and of segmentors trained on them; real images are a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    parser.add_argument("points", nargs="+", metavar="NAME=COST:FOLDER")
    parser.add_argument("--comparison", type=Path, metavar="comparison.json")
    options = parser.parse_args(words)
    results = json.loads(options.comparison.read_text())["results"] if options.comparison else {}
    figure = Figure(figsize=(6 if not results else 4 * (1 + len(results)), 3.2), layout="constrained")
    axes, *others = figure.subplots(1, 1 + len(results), squeeze=False)[0]
    costs: dict[str, float] = {}
    for word in options.points:
        name, _, rest = word.partition("=")
        cost, _, folder = rest.partition(":")
        report = json.loads((Path(folder) / "evaluation.json").read_text())
        found = 100 * report["synthesized"]["mIoU"]
        costs[name] = float(cost)
        axes.plot(float(cost), found, "o", color=JOINT)
        axes.annotate(name, (float(cost), found), xytext=(7, -3), textcoords="offset points", fontsize=8)
        real = 100 * report["real"]["mIoU"]
    axes.axhline(real, color="black", linewidth=0.8)
    axes.annotate("in real images", (0.05, real), xytext=(0, -11), textcoords="offset points", fontsize=8)
    axes.set(xlabel="operations, as a share of the published way's", ylabel="mIoU of the masks (%)", xlim=(0, 1.2))
    axes.set_ylim(bottom=min(40.0, axes.get_ylim()[0]))
    axes.spines[["top", "right"]].set_visible(False)
    for panel, (split, result) in zip(others, results.items(), strict=True):
        for name, cost in costs.items():
            if arm := result["arms"].get(f"synthesized:{name}"):
                apart = {key: 100 * arm["scores"]["mIoU"]["difference"][key] for key in ("mean", "low", "high")}
                below, above = apart["mean"] - apart["low"], apart["high"] - apart["mean"]
                panel.errorbar(cost, apart["mean"], [[below], [above]], fmt="o", color=JOINT, capsize=3)
                panel.annotate(name, (cost, apart["mean"]), xytext=(7, -3), textcoords="offset points", fontsize=8)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.annotate("real images", (0.55, 0), xytext=(0, -11), textcoords="offset points", fontsize=8)
        panel.set(xlabel=axes.get_xlabel(), ylabel=f"{split}: mIoU of segmentors, in points", xlim=(0, 1.3))
        panel.spines[["top", "right"]].set_visible(False)
    options.out.write_text(svg_text(figure))


if __name__ == "__main__":
    main()

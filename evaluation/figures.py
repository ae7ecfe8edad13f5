"""Plots of a comparison, as SVG text for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.plots import plt

BASELINE, JOINT, WORSE = "#8a8a8a", "#3b6fb6", "#c0392b"


def svg_text(figure: Figure) -> str:
    """The figure as an <svg> element."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def seeds_figure(
    baseline: Sequence[Mapping[str, Any]], joint: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> str:
    """Each seed's scores before and after, joined by a line.

    Args:
        baseline: metrics, one a seed.
        joint: metrics of the same seeds.
        names: scores to show, e.g. OA, mIoU, mAcc.
    """
    figure, panels = plt.subplots(1, len(names), figsize=(3 * len(names), 3.2), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        for before, after in zip(baseline, joint, strict=True):
            color = JOINT if after[name] >= before[name] else WORSE
            axes.plot([0, 1], [100 * before[name], 100 * after[name]], "-o", color=color, markersize=4, linewidth=1)
        means = [100 * np.mean([run[name] for run in runs]) for runs in (baseline, joint)]
        axes.plot([0, 1], means, "_", color="black", markersize=24, markeredgewidth=2)
        axes.set(title=f"{name} (%)", xlim=(-0.4, 1.4), xticks=[0, 1], xticklabels=["real", "joint"])
        axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


def classes_figure(classes: Mapping[str, Mapping[str, Any] | None]) -> str:
    """IoU by class before and after, and the difference with its interval.

    Args:
        classes: see ``compare``.
    """
    known = {name: entry for name, entry in classes.items() if entry}
    rows = np.arange(len(known))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.6 + 0.42 * len(rows)), sharey=True, layout="constrained")
    for offset, kind, label, color in ((-0.2, "baseline", "real", BASELINE), (0.2, "joint", "joint", JOINT)):
        bars = left.barh(
            rows + offset, [100 * entry[kind]["mean"] for entry in known.values()], 0.38, color=color, label=label
        )
        left.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    left.set(xlabel="IoU, mean over seeds (%)", xlim=(0, 112), yticks=rows, yticklabels=list(known))
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for row, entry in zip(rows, known.values(), strict=True):
        difference = entry["difference"]
        color = JOINT if difference["mean"] >= 0 else WORSE
        right.plot(100 * difference["mean"], row, "o", color=color)
        if difference["low"] is not None:
            right.plot([100 * difference["low"], 100 * difference["high"]], [row, row], color=color)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(xlabel="joint minus real (points), 95 % interval")
    left.set_ylim(len(rows) - 0.5, -0.5)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)

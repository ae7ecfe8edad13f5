"""Plots of a comparison, as SVG text for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.plots import plt
from evaluation.comparison import half_interval

BASELINE, JOINT, WORSE = "#8a8a8a", "#3b6fb6", "#c0392b"


def svg_text(figure: Figure) -> str:
    """The figure as an <svg> element."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def seeds_figure(
    baseline: Sequence[Mapping[str, Any]], joint: Sequence[Mapping[str, Any]], names: Sequence[str], arm: str = "joint"
) -> str:
    """Each seed's scores before and after, joined by a line.

    Args:
        baseline: metrics, one a seed.
        joint: metrics of the same seeds.
        names: scores to show, e.g. OA, mIoU, mAcc.
        arm: what the joint ones are called.
    """
    figure, panels = plt.subplots(1, len(names), figsize=(3 * len(names), 3.2), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        for before, after in zip(baseline, joint, strict=True):
            color = JOINT if after[name] >= before[name] else WORSE
            axes.plot([0, 1], [100 * before[name], 100 * after[name]], "-o", color=color, markersize=4, linewidth=1)
        means = [100 * np.mean([run[name] for run in runs]) for runs in (baseline, joint)]
        axes.plot([0, 1], means, "_", color="black", markersize=24, markeredgewidth=2)
        axes.set(title=f"{name} (%)", xlim=(-0.4, 1.4), xticks=[0, 1], xticklabels=["real", arm])
        axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


def classes_figure(classes: Mapping[str, Mapping[str, Any] | None], arm: str = "joint") -> str:
    """IoU by class before and after, and the difference with its interval.

    Args:
        classes: see ``compare``.
        arm: what is compared with the real images alone.
    """
    known = {name: entry for name, entry in classes.items() if entry}
    rows = np.arange(len(known))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.6 + 0.42 * len(rows)), sharey=True, layout="constrained")
    for offset, kind, label, color in ((-0.2, "baseline", "real", BASELINE), (0.2, "joint", arm, JOINT)):
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
    right.set(xlabel=f"{arm} minus real (points), 95 % interval")
    left.set_ylim(len(rows) - 0.5, -0.5)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


def arms_figure(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Each arm's difference to the real images alone in mIoU, with its interval; free tricks in gray.

    Args:
        arms: by name, see ``comparison_page.write_comparison``.
    """
    rows = np.arange(len(arms))
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.34 * len(rows)), layout="constrained")
    for row, arm in zip(rows, arms.values(), strict=True):
        difference = arm["scores"]["mIoU"]["difference"]
        color = BASELINE if arm["free"] else JOINT
        axes.plot(100 * difference["mean"], row, "o", color=color)
        if difference["low"] is not None:
            axes.plot([100 * difference["low"], 100 * difference["high"]], [row, row], color=color)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="mIoU minus that of real images alone (points), 95 % interval", yticks=rows, yticklabels=list(arms))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


VARIED = {"amount": "synthesized images for each real one", "share": "part of the real images"}


def curve_figure(varied: str, points: Sequence[Mapping[str, Any]]) -> str:
    """mIoU with and without synthesized images against what varies, and the difference; all with 95 % intervals.

    Args:
        varied: ``amount`` or ``share``.
        points: see ``comparison_page.write_comparison``.
    """
    values = [point["value"] for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")

    def line(axes: Any, means: Sequence[float], halves: Sequence[float], label: str, color: str) -> None:
        axes.errorbar(
            values, 100 * np.array(means), 100 * np.array(halves), fmt="-o", color=color, capsize=3, label=label
        )

    for kind, label, color in (("baseline", "real", BASELINE), ("joint", "joint", JOINT)):
        spreads = [point[kind]["sd"] for point in points]
        halves = [0.0 if sd is None else half_interval(sd, p["seeds"]) for sd, p in zip(spreads, points, strict=True)]
        line(left, [point[kind]["mean"] for point in points], halves, label, color)
    differences = [point["difference"] for point in points]
    halves = [0.0 if entry["high"] is None else entry["high"] - entry["mean"] for entry in differences]
    line(right, [entry["mean"] for entry in differences], halves, "joint minus real", JOINT)
    right.axhline(0, color="black", linewidth=0.8)
    left.set(ylabel="mIoU (%)")
    right.set(ylabel="joint minus real (points)")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set(xlabel=VARIED[varied], xscale="log", xticks=values, xticklabels=[f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)

"""What re-sampling kept, and what it changed: numbers and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.plots import plt

BEFORE, AFTER, INACCURATE = "#b0b0b0", "#3b6fb6", "#c0392b"


def resample_statistics(
    classes: Sequence[str],
    pixels: NDArray[Any],
    sizes: NDArray[Any],
    reasons: Sequence[str | None],
    poor: Sequence[int],
    counted: Sequence[str],
) -> dict[str, Any]:
    """What was kept and why, and class shares before and after.

    Args:
        classes: C class names.
        pixels: surviving pixels (images, C).
        sizes: all pixels (images,).
        reasons: why each image is kept, None where it is not.
        poor: ids of poorly recognized classes.
        counted: the reasons that there may be.
    """
    kept = np.array([reason is not None for reason in reasons])

    def shares(rows: NDArray[Any]) -> list[float]:
        total = rows.sum(axis=0)
        return [float(share) for share in total / max(total.sum(), 1)]

    before, after = shares(pixels), shares(pixels[kept])
    return {
        "images": len(reasons),
        "kept": int(kept.sum()),
        "reasons": {reason: reasons.count(reason) for reason in counted},
        "valid_share": {
            "before": float(pixels.sum() / max(sizes.sum(), 1)),
            "after": float(pixels[kept].sum() / max(sizes[kept].sum(), 1)),
        },
        "per_class": {
            name: {
                "inaccurate": c in poor,
                "share_before": before[c],
                "share_after": after[c],
                "images_before": int((pixels[:, c] > 0).sum()),
                "images_after": int((pixels[kept, c] > 0).sum()),
            }
            for c, name in enumerate(classes)
        },
    }


def resample_figure(path: Path, statistics: Mapping[str, Any]) -> None:
    """Each class's share of pixels and number of images before and after re-sampling, and what hard masks keep.

    Args:
        path: .svg or .png file.
        statistics: see ``resample_statistics``.
    """
    per_class = statistics["per_class"]
    rows = np.arange(len(per_class))
    masks = statistics.get("masks", {})
    panels: list[Any]
    figure, panels = plt.subplots(
        1, 3 if masks else 2, figsize=(16 if masks else 11, 1.8 + 0.4 * len(rows)), layout="constrained"
    )
    panels[1].sharey(panels[0])
    panels[1].tick_params(labelleft=False)
    for axes, key, scale, label in (
        (panels[0], "share", 100, "share of surviving pixels (%)"),
        (panels[1], "images", 1, "images that show the class"),
    ):
        for offset, when, color in ((-0.2, "before", BEFORE), (0.2, "after", AFTER)):
            values = [scale * entry[f"{key}_{when}"] for entry in per_class.values()]
            bars = axes.barh(rows + offset, values, 0.38, color=color, label=when)
            axes.bar_label(bars, fmt="%.1f" if scale > 1 else "%d", padding=2, fontsize=8)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.1)
    panels[0].set(yticks=rows, yticklabels=list(per_class), ylim=(len(rows) - 0.5, -0.5))
    for tick, entry in zip(panels[0].get_yticklabels(), per_class.values(), strict=True):
        if entry["inaccurate"]:
            tick.set(color=INACCURATE, fontweight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    if masks:
        _hardness_panel(panels[2], masks)
    marked = "; bold red: poorly recognized" if any(entry["inaccurate"] for entry in per_class.values()) else ""
    figure.suptitle(f"{statistics['kept']} of {statistics['images']} images kept{marked}")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _hardness_panel(axes: Any, masks: Mapping[str, Mapping[str, Any]]) -> None:
    """How many images each mask has and keeps, by its hardness."""
    hardness = [entry["hardness"] for entry in masks.values()]
    for key, color, size in (("images", BEFORE, 28), ("kept", AFTER, 12)):
        axes.scatter(hardness, [entry[key] for entry in masks.values()], s=size, color=color, linewidths=0)
    axes.set(xlabel="hardness of the mask: mean real loss of its pixels' classes (nats)", ylabel="images of the mask")
    axes.set_ylim(0, 1.1 * max(entry["images"] for entry in masks.values()))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)

"""Pictures of an evaluation of synthesized images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.bands import Bands, read_picture
from common.plots import plt

REAL, SYNTHESIZED, LIMIT = "#3b6fb6", "#d9822b", "#c0392b"


def samples_figure(
    path: Path, report: Mapping[str, Any], distances: NDArray[Any], real_distances: NDArray[Any]
) -> None:
    """IoU by class, coverage by class, and distances to the nearest training image.

    Args:
        path: .svg or .png file.
        report: see ``evaluation.samples.evaluate_samples``.
        distances: of synthesized images to their nearest training image (N,).
        real_distances: of training images to their nearest other one (M,).
    """
    names = list(report["synthesized"]["classes"])
    rows = np.arange(len(names))
    figure, (scores, coverage, near) = plt.subplots(
        1, 3, figsize=(15, 2.2 + 0.4 * len(names)), layout="constrained", width_ratios=(3, 3, 4)
    )
    for offset, kind, color in ((-0.2, "real", REAL), (0.2, "synthesized", SYNTHESIZED)):
        values = [100 * (report[kind]["classes"][name]["IoU"] or 0) for name in names]
        shares = [100 * report["coverage"][name][f"share_{kind}"] for name in names]
        for axes, widths in ((scores, values), (coverage, shares)):
            bars = axes.barh(rows + offset, widths, 0.38, color=color, label=kind)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    scores.set(xlabel="IoU of the segmentor (%)", xlim=(0, 115), yticks=rows, yticklabels=names)
    coverage.set(xlabel="share of the masks' pixels (%)")
    coverage.set_yticks(rows, [""] * len(names))
    coverage.margins(x=0.12)
    for axes in (scores, coverage):
        axes.set_ylim(len(names) - 0.5, -0.5)
    bins = np.linspace(0, max(distances.max(), real_distances.max(), report["copies"]["limit"]) * 1.02, 40)
    for found, color, label in (
        (real_distances, REAL, "training images, to another one"),
        (distances, SYNTHESIZED, "synthesized images"),
    ):
        near.hist(found, bins, weights=np.full(len(found), 100 / len(found)), color=color, alpha=0.65, label=label)
    near.axvline(report["copies"]["limit"], color=LIMIT, label="nearer: flagged as copy")
    near.set(xlabel="distance to the nearest training image (RMS, 0..1)", ylabel="images (%)")
    near.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    scores.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for axes in (scores, coverage, near):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def nearest_sheet(
    path: Path, pairs: Sequence[tuple[Path, Path, float]], side: int = 192, bands: Bands | None = None
) -> None:
    """Synthesized images (above) with their nearest training images (below) and distances, closest first.

    Args:
        path: .jpg or .png file.
        pairs: synthesized image, training image, distance.
        side: pixels of a picture.
        bands: what is stated of the images'; None for three of 8 bits.
    """
    figure, grid = plt.subplots(
        2, len(pairs), figsize=(side / 100 * len(pairs), side / 100 * 2.25), squeeze=False, layout="constrained"
    )
    for column, (synthesized, training, distance) in zip(grid.T, pairs, strict=True):
        for axes, file in zip(column, (synthesized, training), strict=True):
            axes.imshow(Image.fromarray(read_picture(file, bands)).resize((side, side)))
            axes.set(xticks=[], yticks=[])
        column[0].set_title(f"{distance:.3f}", fontsize=8)
    grid[0, 0].set_ylabel("synthesized")
    grid[1, 0].set_ylabel("nearest")
    figure.savefig(path, dpi=100)
    plt.close(figure)

"""What the filter kept and dropped: numbers and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import spelled
from common.files import atomic_path, write_json
from common.journal import sealed
from common.options import recorded
from common.plots import plt
from post_processing.filter_options import FilterOptions
from post_processing.filter_rule import HISTOGRAM_EDGES, thresholds
from post_processing.filter_state import REAL_LOSS, STATS, FilteredRecord, RealLoss, sum_of_histograms

REAL, SYNTHESIZED, DROPPED = "#3b6fb6", "#d9822b", "#d9d9d9"


def filter_statistics(
    real: RealLoss,
    limits: NDArray[Any],
    records: Mapping[str, FilteredRecord],
) -> dict[str, Any]:
    """Kept and dropped pixels, a class and an image.

    Args:
        real: what the real images showed.
        limits: largest loss of each class (C,).
        records: by image name.

    Returns:
        ``per_class`` by class name and ``images`` by image name. By treatment, a class also has ``relabeled``, the
        pixels that became it, or ``mean_weight``, 0..1.
    """
    total = np.array([record.total for record in records.values()]).sum(axis=0)
    kept = np.array([record.kept for record in records.values()]).sum(axis=0)

    def finite(value: float | None) -> float | None:
        return float(value) if value is not None and np.isfinite(value) else None

    per_class = {
        name: {
            "mean_loss_real": finite(real.mean_loss[c]),
            "limit": finite(limits[c]),
            "real_pixels": real.pixels[c],
            "kept": int(kept[c]),
            "dropped": int(total[c] - kept[c]),
            "kept_share": finite(kept[c] / total[c]) if total[c] else None,
        }
        for c, name in enumerate(real.classes)
    }
    for c, values in enumerate(per_class.values()):
        if relabeled := [record.relabeled[c] for record in records.values() if record.relabeled is not None]:
            values["relabeled"] = sum(relabeled)
        if weights := [record.weights[c] for record in records.values() if record.weights is not None]:
            values["mean_weight"] = finite(sum(weights) / total[c]) if total[c] else None
    images = {
        name: {"kept": record.kept, "dropped": [t - k for t, k in zip(record.total, record.kept, strict=True)]}
        for name, record in sorted(records.items())
    }
    return {"per_class": per_class, "images": images}


def filter_figure(
    path: Path,
    per_class: Mapping[str, Mapping[str, Any]],
    real_histogram: NDArray[Any],
    synthesized_histogram: NDArray[Any],
    margin: float,
) -> None:
    """Kept share a class, and how the losses of real and synthesized pixels are distributed.

    Args:
        path: .svg or .png file.
        per_class: see ``filter_statistics``.
        real_histogram: pixels of each class in each bin of ``HISTOGRAM_EDGES`` (C, bins).
        synthesized_histogram: the same for synthesized images.
        margin: tolerance margin.
    """
    names = list(per_class)
    rows = np.arange(len(names))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.45 * len(names)), sharey=True, width_ratios=(2, 3), layout="constrained"
    )
    weighted = any("mean_weight" in values for values in per_class.values())
    relabeled = any("relabeled" in values for values in per_class.values())
    key, kept = ("mean_weight", "mean weight") if weighted else ("kept_share", "kept")
    dropped = "weighed down" if weighted else "relabeled or dropped (255)" if relabeled else "dropped (255)"
    shares = np.array([100 * (values[key] or 0) for values in per_class.values()])
    shown = np.array([100 if values[key] is not None else 0 for values in per_class.values()])
    left.barh(rows, shares, color=SYNTHESIZED, label=kept)
    left.barh(rows, shown - shares, left=shares, color=DROPPED, label=dropped)
    for row, values in zip(rows, per_class.values(), strict=True):
        share = values[key]
        left.text(2, row, "no pixels" if share is None else f"{100 * share:.1f} %", va="center")
    left.set(xlabel="share of the class's synthesized pixels (%)", xlim=(0, 100), yticks=rows, yticklabels=names)
    centers = np.sqrt(HISTOGRAM_EDGES[:-1] * HISTOGRAM_EDGES[1:])
    for label, histogram, color, sign in (
        ("real", real_histogram, REAL, -1),
        ("synthesized", synthesized_histogram, SYNTHESIZED, 1),
    ):
        peak = np.maximum(histogram.max(axis=1, keepdims=True), 1)
        for row, density in zip(rows, sign * 0.42 * histogram / peak, strict=True):
            right.fill_between(
                centers, row, row + density, color=color, alpha=0.8, linewidth=0, label=label if row == 0 else None
            )
    for row, values in zip(rows, per_class.values(), strict=True):
        if values["limit"] is not None:
            right.plot(
                [values["limit"]] * 2,
                [row - 0.45, row + 0.45],
                color="black",
                linewidth=1.2,
                label=f"limit: {margin:g} x real mean" if row == rows[-1] else None,
            )
    filled = np.flatnonzero((real_histogram + synthesized_histogram).sum(axis=0))
    ends = (HISTOGRAM_EDGES[filled[0]], HISTOGRAM_EDGES[filled[-1] + 1]) if len(filled) else HISTOGRAM_EDGES[[0, -1]]
    right.set(xscale="log", xlim=ends, xlabel="cross-entropy of a pixel (nats)")
    left.set_ylim(len(names) - 0.5, -0.5)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_report(
    options: FilterOptions, real: RealLoss, records: Mapping[str, FilteredRecord], left_out: Sequence[str]
) -> dict[str, Any]:
    """Writes filter_stats.json and filter_stats.svg, and real_loss.json beside saved losses.

    Args:
        options: of the run.
        real: what the real images showed.
        records: by image name.
        left_out: a line for each file that was.

    Returns:
        What filter_stats.json holds.
    """
    out = options.filtered_mask_path
    limits = thresholds(real.means(), options.tolerance_margin, options.unseen_class)
    statistics = filter_statistics(real, limits, records)
    if options.save_loss:
        checksums = {name: record.losses for name, record in records.items()}
        content = {**real.model_dump(), "checksums": checksums}
        write_json(sealed(content), options.save_loss / REAL_LOSS, indent=None)
    labels = {"labels": sealed({"of_id": real.label_of_id})} if real.label_of_id else {}
    report = {"options": recorded(options), "skipped": [spelled(line) for line in left_out], **labels, **statistics}
    write_json(report, out / STATS, indent=None)
    histograms = np.asarray(real.histogram), sum_of_histograms(records.values(), len(limits))
    with atomic_path(out / "filter_stats.svg") as path:
        filter_figure(path, statistics["per_class"], *histograms, options.tolerance_margin)
    return report

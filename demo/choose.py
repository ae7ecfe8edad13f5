"""Of a baseline's trainings with several values of a setting, the one with the best mIoU on the validation images.

  python -m demo.choose OUT/choose

In OUT/choose there is a folder <name>_<value> for each training, with what segmentor train and test wrote. Prints the
best value, and writes choose.json and the learning curves, curves.svg: the best one should have stopped rising.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common.files import atomic_path, write_json
from common.metrics_file import read_metrics
from common.plots import plt


def curve(run: Path) -> list[tuple[int, float]]:
    """Iterations and mIoU of a training's validations; of one that was resumed, the last at each iteration."""
    points = {}
    for log in sorted(run.glob("*/vis_data/scalars.json")):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if "mIoU" in entry:
                points[int(entry["step"])] = float(entry["mIoU"])
    return sorted(points.items())


def main(folder: Path) -> None:
    """Compares, draws, prints the best value."""
    runs = {run.name.rpartition("_")[2]: run for run in sorted(folder.iterdir()) if (run / "metrics.json").is_file()}
    scores = {value: read_metrics(run / "metrics.json").mIoU or 0.0 for value, run in runs.items()}
    curves = {value: curve(run) for value, run in runs.items()}
    best = max(scores, key=lambda value: scores[value])
    write_json({"best": best, "mIoU": scores, "curves": curves}, folder / "choose.json")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for value, points in curves.items():
        axes.plot([step for step, _ in points], [100 * score for _, score in points], label=value)
    axes.set(xlabel="iterations", ylabel="mIoU on the validation images (%)")
    axes.legend(frameon=False)
    with atomic_path(folder / "curves.svg") as path:
        figure.savefig(path)
    print(best)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

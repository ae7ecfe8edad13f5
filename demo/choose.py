"""Of a baseline's trainings with several values of a setting, the one with the best mIoU on the validation images.

  python -m demo.choose OUT/choose 5e-4 1e-3

In OUT/choose there is a folder rate_<value> for each training, with what segmentor train and test wrote; those of other
values than the given ones are not looked at. Prints the best value, and writes choose.json and the learning curves,
curves.svg: the best one should have stopped rising.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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


def main(folder: Path, values: Sequence[str]) -> None:
    """Compares the trainings with these values, draws, prints the best one."""
    runs = {value: folder / f"rate_{value}" for value in values}
    scores = {value: read_metrics(run / "metrics.json").of_shown().mIoU or 0.0 for value, run in runs.items()}
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
    main(Path(sys.argv[1]), sys.argv[2:])

"""The table of demo/ablations.sh: of each training its steps, its last validation loss, and what its pictures show."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.files import atomic_path
from ldm.training.resume import held_step

SPACES = {"published": "of another target", "v": "of another target", "v_zero_terminal_snr": "of another target"}


def validation_loss(run: Path) -> float | None:
    """The last one of a run's logs; None if it never came to validate."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events.Scalars("val/loss")[-1].value if "val/loss" in events.Tags()["scalars"] else None


def row(out: Path, arm: str) -> str:
    """A line of the table."""
    run, evaluation = out / "logs" / arm, json.loads((out / arm / "evaluation" / "evaluation.json").read_text())
    score = evaluation["synthesized"]["mIoU"]
    loss = validation_loss(run)
    shown = SPACES.get(arm, "none" if loss is None else f"{loss:.3f}")
    steps = held_step(run / "checkpoints" / "last.ckpt")
    return f"| `{arm}` | {steps:,} | {shown} | {score:.3f} |"


def main() -> None:
    """Writes ``table.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of demo/ablations.sh")
    parser.add_argument("arms", nargs="+", help="in this order")
    options = parser.parse_args()
    head = ["changed", "steps", "validation loss", "mIoU of the masks in the pictures"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(row(options.out, arm) for arm in options.arms)]
    table = "\n".join(lines) + "\n"
    with atomic_path(options.out / "table.md") as path:
        path.write_text(table)
    print(table, end="")


if __name__ == "__main__":
    main()

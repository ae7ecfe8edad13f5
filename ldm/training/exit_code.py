"""The exit code of a command that trains."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from ldm.training.checkpoints import TrainingDiverged
from ldm.training.ranks import started_by_first


def exit_code(train: Callable[[], int]) -> int:
    """Runs a training, whose notes are printed.

    Args:
        train: returns the signal that ended it before its time, or 0.

    Returns:
        0: trained; 1: the loss is no number, which is told; 143 (SIGTERM), 130 (Ctrl-C): saved and stopped, as shells
        count, so that what follows does not take the run for done.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        stopped_by = train()
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # Lightning would kill the first process within seconds of another that ends with a code, amid what it has to finish
    return 128 + stopped_by if stopped_by and not started_by_first() else 0

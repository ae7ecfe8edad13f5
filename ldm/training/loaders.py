"""Loaders of trainings, and their processes."""

from __future__ import annotations

import signal
from typing import Any

import cv2
from torch.utils.data import DataLoader

from common.processes import end_with_parent

AT_END_OF_TIME = (signal.SIGTERM, signal.SIGUSR1)  # what clusters send: ``#SBATCH --signal``


class TrainLoader(DataLoader[Any]):
    """A loader that tells Lightning, which warns about others, that it can go on within an epoch.

    Its state is empty: Lightning restores a loader's state only if the run ended within an epoch, so the place is kept
    by the data module.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the place."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the data module has the place."""


def quiet_worker(_: int) -> None:
    """Workers are processes already; threads of OpenCV would fight for the same CPUs.

    A cluster sends its SIGTERM, or SIGUSR1, to every process of a job, a terminal its Ctrl-C. A worker that obeyed
    would take the run down before it has saved; workers end with the process that started them, by SIGKILL too.
    """
    end_with_parent()
    cv2.setNumThreads(0)
    for number in (*AT_END_OF_TIME, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

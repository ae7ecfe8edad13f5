"""Where a training's numbers and pictures go: TensorBoard, a CSV file, or Weights & Biases, by one value."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from common.errors import InputError
from common.extras import install


class WandbRun(WandbLogger):
    """W&B's run of a training, which ends with it: another training in this process is another run."""

    def finalize(self, status: str) -> None:
        """Writes what is left, and ends the run, if it ever began."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish()


def check_logger(kind: str, field: str) -> None:
    """Refuses a log whose package is not there; see ``make_logger``.

    Raises:
        InputError: the package is not installed.
    """
    if kind == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError(f"{field}: wandb: is not installed; pip install wandb, or {install('wandb')}")


def make_logger(kind: str, folder: Path, field: str, name: str = "") -> Logger:
    """A run's logger, which writes nothing before the run starts.

    * ``tensorboard``: ``<run>/tensorboard``.
    * ``csv``: ``<run>/csv/metrics.csv``; a resumed run begins ``csv_2``, and so on.
    * ``wandb``: ``<run>/wandb``, offline, until ``wandb sync`` sends it; the variable WANDB_MODE=online sends at once.
      WANDB_PROJECT names the project, ``tisynth`` by default.

    Args:
        kind: one of ``common.log_choices.LOGGERS``.
        folder: of the run.
        field: of the configuration, or option, for messages.
        name: of W&B's run; the folder's by default.

    Raises:
        InputError: the package is not installed.
    """
    check_logger(kind, field)
    if kind == "csv":
        version, number = "csv", 1
        while (folder / version).exists():  # the logger would delete what an earlier start wrote
            number += 1
            version = f"csv_{number}"
        return CSVLogger(folder, name="", version=version)
    if kind == "wandb":
        offline = os.environ.get("WANDB_MODE", "offline") != "online"
        project = os.environ.get("WANDB_PROJECT", "tisynth")
        return WandbRun(name or folder.name, save_dir=folder, offline=offline, project=project)
    return TensorBoardLogger(folder, name="", version="tensorboard")


def log_picture(logger: Any, title: str, picture: NDArray[Any], step: int) -> None:
    """Gives a picture (H, W, 3) uint8 to a logger that shows pictures; a CSV file holds none."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(title, picture, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(title, [picture], step)

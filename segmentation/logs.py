"""Where a segmentor's losses and scores go beside mmengine's own log: to the logs of our other trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend
from pytorch_lightning.loggers import Logger

from common.loggers import check_logger, make_logger
from segmentation.trees import entries

_FIELD = "‹logger›"


@VISBACKENDS.register_module()
class RunLogger(BaseVisBackend):
    """A log of ``common.loggers``, written by mmengine's visualizer; nothing is written before the first number.

    Args:
        save_dir: folder of the log, ``<work_dir>/<time>/vis_data``, as the visualizer gives it.
        kind: see ``common.loggers.make_logger``.
    """

    def __init__(self, save_dir: str, kind: str) -> None:
        super().__init__(save_dir)
        self.kind, self.folder = kind, Path(save_dir)
        self._logger: Logger | None = None

    def _init_env(self) -> None:
        self._logger = make_logger(self.kind, self.folder, _FIELD, self.folder.absolute().parents[1].name)

    @property
    def experiment(self) -> Logger:
        """Lightning's logger."""
        if self._logger is None:
            self._init_env()
        assert self._logger is not None
        return self._logger

    def add_scalar(self, name: str, value: Any, step: int = 0, **more: Any) -> None:
        """Writes a number of a step."""
        self.add_scalars({name: value}, step)

    def add_scalars(
        self, scalar_dict: Mapping[str, Any], step: int = 0, file_path: str | None = None, **more: Any
    ) -> None:
        """Writes numbers of a step, onto the disk: a training may be stopped at any moment."""
        self.experiment.log_metrics({name: float(value) for name, value in scalar_dict.items()}, step)
        self.experiment.save()

    def close(self) -> None:
        """Ends the log, if it ever began."""
        if self._logger is not None:
            self._logger.finalize("success")


def set_logger(config: Config, kind: str) -> None:
    """Writes losses, rates and scores to another log, too, below the folder of mmengine's.

    Args:
        config: changed in place.
        kind: see ``common.loggers.make_logger``; TensorBoard's is mmengine's own.

    Raises:
        InputError: its package is not installed.
    """
    check_logger(kind, _FIELD)
    visualizer = config.get("visualizer") or {"type": "SegLocalVisualizer", "name": "visualizer"}
    backends = list(visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}])
    if kind != "tensorboard":
        backends.append({"type": RunLogger.__name__, "kind": kind})
    elif not any(entries(backends, "TensorboardVisBackend")):
        backends.append({"type": "TensorboardVisBackend"})
    config.visualizer = {**visualizer, "vis_backends": backends}

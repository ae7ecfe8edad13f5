"""Test of a segmentor: its scores on images with masks, as metrics.json and, if asked for, a table of confusions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process

from common.errors import InputError
from common.files import check_writable, room_for, write_json
from common.segmentor_options import TestOptions
from segmentation.config import errors_in_one_line
from segmentation.confusion import write_confusion
from segmentation.data_check import LOADERS, check_files
from segmentation.rehearsal import rehearse
from segmentation.resolved_config import resolve
from segmentation.runner import TestRunner, globals_restored, join_processes
from segmentation.trees import entries
from segmentation.views import test_from_views

_OF_TRAINING = (
    "train_dataloader",
    "train_cfg",
    "optim_wrapper",
    "param_scheduler",
    "val_dataloader",
    "val_cfg",
    "val_evaluator",
)


@dataclass(frozen=True)
class Tested:
    """A test's scores and files.

    Attributes:
        metrics: see ``metrics_report``.
        file: where they are, as JSON.
        confusion: table and figure of which class is taken for which, if asked for; in the first process.
    """

    metrics: dict[str, Any]
    file: Path
    confusion: tuple[Path, ...] = ()

    @property
    def summary(self) -> dict[str, float | None]:
        """OA, mIoU and mAcc; of several test sets the mIoU of each by name, and their harmonic mean."""
        values = {name: part["mIoU"] for name, part in self.metrics.get("sets", {}).items()}
        return values | {name: self.metrics[name] for name in ("OA", "mIoU", "mAcc", "h_mean") if name in self.metrics}


def test_config(options: TestOptions) -> Config:
    """The config that ``test`` takes.

    Raises:
        InputError: see ``resolved_config.resolve``; or its test has no scores to count confusions with.
    """
    config = resolve(options)
    config.resume = False
    if options.confusion:
        scores = list(entries(config.get("test_evaluator"), "ClassIoUMetric"))
        if len(scores) != 1:
            raise InputError(f"{config.filename}: ‹confusion›: its test_evaluator is no single IoUMetric")
        scores[0].confusion = True
    if options.tta:
        test_from_views(config)
    return config


def test(options: TestOptions) -> Tested:
    """Tests the weights of ``load_from`` and writes the metrics.

    Raises:
        InputError: anything that does not fit, before the work.
    """
    config = test_config(options)
    if not options.unchecked:
        check_files(config, LOADERS["test"], options.several_maps)
    if not config.load_from and config.model.type != "MaskigeReconstruction":  # it has no weights
        raise InputError("‹load_from›: name the weights to test")
    if not (config.get("test_dataloader") and config.get("test_cfg") is not None and config.get("test_evaluator")):
        raise InputError(f"{config.filename}: nothing to test with: needs test_dataloader, test_cfg and test_evaluator")
    out = options.out or Path(config.work_dir, "metrics.json")
    if out.is_dir():
        raise InputError(f"‹out› {out}: is a folder; name a file")
    for key in _OF_TRAINING:
        config.pop(key, None)
    rehearse(config, "test")
    check_writable(out.parent, "‹out›")
    folder = check_writable(config.work_dir, "‹work_dir›")
    with room_for("‹work_dir›", folder):
        join_processes(config.launcher)
        with globals_restored(), errors_in_one_line(config, f"testing (see the log in {folder})"):
            runner = TestRunner.from_cfg(config)
            scores = runner.test()
    report = metrics_report(
        scores,
        images=len(runner.test_dataloader.dataset),
        checkpoint=str(config.load_from),
        config=str(config.filename),
    )
    if not is_main_process():
        return Tested(report, out)
    write_json(report, out)
    confusion: tuple[Path, ...] = ()
    for metric in runner.test_evaluator.metrics:
        if (matrix := getattr(metric, "matrix", None)) is not None:
            names = list(metric.dataset_meta["classes"])
            confusion = write_confusion(matrix, names, out.with_name(f"{out.stem}_confusion"))
    return Tested(report, out, confusion)


def metrics_report(scores: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Scores in 0..1: OA, mIoU, mAcc, and IoU and Acc by class name; nan becomes None.

    Of several test sets, each with classes of its own, the same for each and the harmonic mean of their mIoU.
    """
    scores = {key: None if value != value else float(value) for key, value in scores.items()}
    if sets := [key.removesuffix("/mIoU") for key in scores if key.endswith("/mIoU")]:
        parts = {
            name: {
                key.removeprefix(f"{name}/"): math.nan if value is None else value
                for key, value in scores.items()
                if key.startswith(f"{name}/")
            }
            for name in sets
        }
        reports = {name: metrics_report(part) for name, part in parts.items()}
        return {"h_mean": scores["h_mean"], "sets": reports, **facts}
    names = [key.removeprefix("IoU/") for key in scores if key.startswith("IoU/")]
    return {
        "OA": scores.get("aAcc"),
        "mIoU": scores.get("mIoU"),
        "mAcc": scores.get("mAcc"),
        "classes": {name: {"IoU": scores[f"IoU/{name}"], "Acc": scores[f"Acc/{name}"]} for name in names},
        **facts,
    }

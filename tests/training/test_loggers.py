"""Where a training's numbers and pictures go, by one value of its configuration."""

import csv
import importlib.util

import numpy as np
import pytest

from common.errors import InputError
from ldm.training.loggers import log_picture, make_logger
from tests.training.test_training import options

PICTURES = ("lightning.callbacks.image_logger.params.batch_frequency=1", "lightning.trainer.log_every_n_steps=1")


@pytest.mark.parametrize("kind", ["csv", "wandb"])
def test_a_training_logs_where_it_is_told(cli, scenes, tmp_path, kind):
    if kind == "wandb":
        pytest.importorskip("wandb")
    settings = (f"lightning.logger={kind}", "lightning.trainer.max_steps=4", *PICTURES)
    cli("train", *options(scenes, tmp_path, "run", *settings))
    assert not (tmp_path / "run" / "tensorboard").exists()
    if kind == "csv":
        rows = list(csv.DictReader((tmp_path / "run" / "csv" / "metrics.csv").open()))
        assert any(row["train/loss"] for row in rows) and any(row["val/loss"] for row in rows)
    else:
        (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
        assert list(run.glob("*.wandb"))
        assert len(list(run.glob("files/media/images/*.png"))) == 4


def test_an_unknown_log_is_refused_before_work(cli, scenes, tmp_path):
    said = cli.refused("train", *options(scenes, tmp_path, "run", "lightning.logger=paper"))
    assert "lightning.logger" in said and "'tensorboard', 'csv' or 'wandb'" in said
    cli("train", *options(scenes, tmp_path, "run", "lightning.logger.target=x.Logger"), "--dry-run")  # as published


def test_a_log_goes_on_beside_what_an_earlier_start_wrote(tmp_path):
    for step in range(2):
        logger = make_logger("csv", tmp_path, "logger")
        logger.log_metrics({"loss": float(step)}, step)
        logger.finalize("success")
    assert [(tmp_path / name / "metrics.csv").is_file() for name in ("csv", "csv_2")] == [True, True]


def test_pictures_reach_tensorboard_and_no_csv(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.zeros((4, 6, 3), np.uint8)
    for kind in ("csv", "tensorboard"):
        logger = make_logger(kind, tmp_path, "logger")
        log_picture(logger, "sheet", picture, 3)
        logger.finalize("success")
    assert not (tmp_path / "csv").exists()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("sheet")
    assert event.step == 3 and (event.height, event.width) == (4, 6)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"training\.logger: wandb: is not installed; pip install wandb, or"):
        make_logger("wandb", tmp_path, "training.logger")

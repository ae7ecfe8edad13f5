"""Where a training's numbers and pictures go, by one value of its configuration."""

import csv
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.visualization import Visualizer

from common.errors import InputError
from common.loggers import log_picture, make_logger
from gss import dvae_training
from segmentation.logs import set_logger
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


def test_a_segmentors_numbers_reach_the_same_logs(tmp_path):
    config = Config({"visualizer": {"type": "SegLocalVisualizer", "vis_backends": [], "name": "visualizer"}})
    set_logger(config, "csv")
    backends = [one for one in config.visualizer.vis_backends if one["type"] != "LocalVisBackend"]
    visualizer = Visualizer("of a test", vis_backends=backends, save_dir=str(tmp_path / "work" / "20260101"))
    assert list(tmp_path.iterdir()) == []
    visualizer.add_scalars({"loss": torch.tensor(0.5), "lr": 0.1}, step=50)
    visualizer.add_scalars({"mIoU": 40.0}, step=100)
    rows = list(csv.DictReader((tmp_path / "work" / "20260101" / "vis_data" / "csv" / "metrics.csv").open()))
    assert [(row["step"], row["loss"], row["mIoU"]) for row in rows] == [("50", "0.5", ""), ("100", "", "40.0")]
    visualizer.close()


def test_a_dvaes_losses_are_logged(tmp_path, monkeypatch):
    given = SimpleNamespace(out=tmp_path / "d.pth", logger="csv", steps=21, save_every=100)
    trainer = SimpleNamespace(
        options=given,
        step=lambda step, crops: step / 2,
        schedule=SimpleNamespace(get_last_lr=lambda: [0.25]),
        codes=SimpleNamespace(write_to=lambda dvae: None),
        dvae=None,
    )
    monkeypatch.setattr(dvae_training, "check_finite", lambda *_: None)
    monkeypatch.setattr(dvae_training, "save_dvae", lambda dvae, path: path.write_text("weights"))
    dvae_training._train(trainer, None, {})
    rows = list(csv.DictReader((tmp_path / "d.pth.log" / "csv" / "metrics.csv").open()))
    assert [(row["step"], row["train/loss"]) for row in rows] == [("0", "0.0"), ("10", "5.0"), ("20", "10.0")]

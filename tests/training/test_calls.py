"""Training called from Python, with its options alone."""

import dataclasses

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from cldm.build import create_model
from cldm.training.command_line import read_training_line
from cldm.training.options import TrainingOptions
from cldm.training.run import train
from common.command import parser
from ldm.training.resume import held_step
from tests.conftest import SMALL
from tests.training.test_training import options


def test_training_is_a_call_with_its_options(scenes, tmp_path):
    settings = ("lightning.trainer.max_steps=2", "lightning.callbacks.image_logger.params.max_images=0")
    called = TrainingOptions(
        config_model=SMALL,
        name="run",
        logdir=tmp_path,
        data_root=scenes,
        train_list=scenes / "train_set_items.json",
        val_list=scenes / "test_set_items.json",
        gpus="cpu",
        settings=(f"model.params.classes={scenes}/classes.json", *settings),
    )
    typed, _ = read_training_line(parser(""), [str(word) for word in options(scenes, tmp_path, "run", *settings)])
    for field in dataclasses.fields(TrainingOptions):
        is_path = field.name in ("data_root", "train_list", "val_list")  # texts or paths
        value = getattr(called, field.name)
        assert getattr(typed, field.name) == (str(value) if is_path else value), field.name
    assert train(called) == 0
    assert held_step(tmp_path / "run" / "checkpoints" / "last.ckpt") == 2
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").data.params.train.params.data_root == str(scenes)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_whatever_the_precision(scenes, precision):
    model = create_model(SMALL, classes=f"{scenes}/classes.json")
    model.trainer = pl.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    optimizer = model.configure_optimizers()["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    model.configure_gradient_clipping(optimizer, 0.5, "norm")
    assert torch.nn.utils.get_total_norm([p.grad for p in parameters]).item() == pytest.approx(0.5, rel=1e-3)

"""Training called from Python, with its options alone."""

import dataclasses

from omegaconf import OmegaConf

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

"""Training called from Python, with its options alone."""

import torch

from cldm.training.options import TrainingOptions
from cldm.training.run import train
from tests.conftest import SMALL
from tests.training.test_training import options, weights


def test_called_from_python_it_trains_as_the_command(cli, scenes, tmp_path):
    cli("train", *options(scenes, tmp_path, "typed", "lightning.trainer.max_steps=2"))
    called = TrainingOptions(
        config_model=SMALL,
        name="called",
        logdir=tmp_path,
        data_root=scenes,
        train_list=scenes / "train_set_items.json",
        val_list=scenes / "test_set_items.json",
        gpus="cpu",
        settings=(f"model.params.classes={scenes}/classes.json", "lightning.trainer.max_steps=2"),
    )
    assert train(called) == 0
    typed, called_weights = weights(tmp_path / "typed"), weights(tmp_path / "called")
    assert typed.keys() == called_weights.keys() and all(torch.equal(typed[key], called_weights[key]) for key in typed)

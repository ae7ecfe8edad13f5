"""``--mask-scale`` and ``--reference-scale`` through the command line: 1 is what was, others are said and recorded."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from cldm.build import create_model
from cldm.synthesis.folder import other_classes
from ldm.checkpoint import save_state_dict
from tests.conftest import SMALL
from tests.synthesis.conftest import images, records

ONLY = ("--only", "train_0001_seed_5")
NAME = "train_0001_seed_5.png"


@pytest.fixture(scope="module")
def strong(scenes, ckpt, tmp_path_factory):
    """Weights by which mask and reference change a picture more than rounding does."""
    torch.manual_seed(0)
    model = create_model(SMALL, ckpt, classes=str(scenes / "classes.json"))
    with torch.no_grad():
        for _, weight in model.new_parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)
    path = tmp_path_factory.mktemp("strong") / "strong.safetensors"
    save_state_dict(model.state_dict(), path)
    return path


def test_one_and_one_cost_nothing_and_are_what_older_records_mean(cli, command, made, tmp_path, monkeypatch):
    out = shutil.copytree(made, tmp_path / "out")
    ones = ("--mask-scale", "1", "--reference-scale", "1.0")
    assert {(record["mask_scale"], record["reference_scale"]) for record in records(out)} == {(1.0, 1.0)}
    older = [{key: value for key, value in record.items() if "_scale" not in key} for record in records(out)]
    (out / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in older))
    assert "8 images are in" in cli("inference", *command(out, *ones, "--dry-run"))
    line = cli.refused("inference", *command(out, "--mask-scale", "2"))
    assert "made with mask_scale 1.0, not 2.0" in line

    monkeypatch.setattr("cldm.synthesis.guiding.ConditionGuidance", None)  # not even made
    cli("inference", *command(tmp_path / "new", *ONLY, *ones))
    cli("inference", *command(tmp_path / "plain", *ONLY))
    assert np.array_equal(images(tmp_path / "new")[NAME], images(tmp_path / "plain")[NAME])


@pytest.mark.parametrize("option", ["--mask-scale", "--reference-scale"])
def test_a_scale_changes_the_picture_and_is_recorded(cli, command, strong, tmp_path, option):
    only = (*ONLY, "--ckpt", strong)
    cli("inference", *command(tmp_path / "plain", *only))
    out = cli("inference", *command(tmp_path / "out", *only, option, "3"))
    field = option.removeprefix("--").replace("-", "_")
    hidden_by = "drop_" + field.replace("scale", "p")
    warned = f"{option} 3: {SMALL} does not say that training hid it (data.params.train.params.{hidden_by})"
    assert out.count("does not say that training hid") == 1 and warned in out
    assert records(tmp_path / "out")[0][field] == 3.0
    assert np.abs(images(tmp_path / "out")[NAME].astype(int) - images(tmp_path / "plain")[NAME]).max() > 3

    config = OmegaConf.load(SMALL)  # as a run's config.yaml
    config.data.params.train.params[hidden_by] = 0.1
    OmegaConf.save(config, tmp_path / "config.yaml")
    split = ("--split-guidance", "--config", tmp_path / "config.yaml")
    out = cli("inference", *command(tmp_path / "split", *only, option, "3", *split))
    assert "does not say" not in out
    difference = images(tmp_path / "split")[NAME].astype(int) - images(tmp_path / "out")[NAME]
    assert np.abs(difference).max() <= 1


def test_scales_that_cannot_be_are_refused(cli, command, tmp_path):
    assert "--mask-scale: -1: write a number" in cli.refused("inference", *command(tmp_path, "--mask-scale", "-1"))


def test_classes_of_other_names_are_told(tmp_path):
    asked, model = SimpleNamespace(classes=None, data_root=tmp_path), SimpleNamespace(classes="MBRSC")
    assert not other_classes(asked, model)
    for names, told in ((["Building", "land"], 0), (["building", "canal"], 1), (["no table"] * 2, 0)):
        (tmp_path / "classes.json").write_text(json.dumps({"classes": names}))
        assert len(other_classes(asked, model)) == told, names
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["building", "canal"]}))
    assert "class 1 is canal, which the model knows as land" in other_classes(asked, model)[0]
    assert not other_classes(SimpleNamespace(classes="MBRSC", data_root=tmp_path), model)  # the user says which

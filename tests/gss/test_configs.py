"""Configurations: the published values, the published keys, and all of them build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "gss"
CONFIGS = sorted(str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.py") if p.parent.name != "_base_")
PUBLISHED = [name for name in CONFIGS if "/" in name]


def load(name):
    return Config.fromfile(FOLDER / name)


def without_weights(config):
    """A config's model, to be built without any file of weights."""
    model = config.model.copy()
    model.pretrained = None
    model.backbone.pop("init_cfg", None)
    d_vae = model.decode_head.get("d_vae")
    if d_vae:
        d_vae.weights = None
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_and_keys(records, name):
    published = json.loads((records / "published_configs_and_keys.json").read_text())
    expected, config = published[name.removesuffix(".py")], load(name)
    model = config.model
    assert dict(config.model.test_cfg) == {
        k: tuple(v) if isinstance(v, list) else v for k, v in expected["test_cfg"].items()
    }
    assert len(load_palette_of(model)) == expected["decode_head"]["palette_len"]
    if "reconstruction" in name:
        assert model.decode_head.num_classes == expected["decode_head"]["num_classes"]
        return

    def same(ours, theirs):
        if isinstance(theirs, dict):
            return all(same(ours.get(key), value) for key, value in theirs.items())
        if isinstance(theirs, list):
            return len(ours) == len(theirs) and all(map(same, ours, theirs))
        return ours == theirs or (theirs is False and ours is None)

    head = {k: v for k, v in expected["decode_head"].items() if k not in ("palette_len", "loss_decode")}
    assert same(model.decode_head, head)
    assert same(model.backbone, expected["backbone"])
    losses, theirs = model.decode_head.loss_decode, expected["decode_head"]["loss_decode"]
    if isinstance(theirs, list) and model.decode_head.type.endswith("FTW"):  # 0.8 + 0.2 of the same loss
        assert losses.loss_weight == pytest.approx(sum(loss["loss_weight"] for loss in theirs))
    else:
        assert same(losses, theirs)
    optimizer, schedule = config.optim_wrapper, config.param_scheduler
    assert same(
        dict(optimizer.optimizer, betas=list(optimizer.optimizer.betas)),
        {k: v for k, v in expected["optimizer"].items() if k != "paramwise_cfg"},
    )
    assert same(optimizer.paramwise_cfg, expected["optimizer"]["paramwise_cfg"])
    assert config.train_cfg.max_iters == schedule[1].end == expected["runner"]["max_iters"]
    lr = expected["lr_config"]
    assert (schedule[0].end, schedule[0].start_factor) == (lr["warmup_iters"], lr["warmup_ratio"])
    assert (schedule[1].power, schedule[1].eta_min, schedule[1].begin) == (
        lr["power"],
        lr["min_lr"],
        lr["warmup_iters"],
    )
    assert config.train_dataloader.batch_size == expected["samples_per_gpu"]
    assert config.find_unused_parameters == expected["find_unused_parameters"]

    with torch.device("meta"):
        decode_head = MODELS.build(without_weights(config).decode_head)
    keys = [
        [f"decode_head.{k}", list(v.shape)] for k, v in decode_head.state_dict().items() if not k.startswith("d_vae.")
    ]
    assert keys == published["head_keys"][name.removesuffix(".py")]
    assert len(decode_head.d_vae.state_dict()) == expected["n_dvae_keys"]


def load_palette_of(model):
    from gss.palette import load_palette

    return load_palette(model.decode_head.palette, model.decode_head.num_classes)


@pytest.mark.parametrize(
    "name", [n for n in PUBLISHED if "gss-ff" in n and "ade20k" not in n and "mseg/gss-ff_swin" not in n]
)
def test_backbone_keys(records, monkeypatch, name):
    published = json.loads((records / "published_configs_and_keys.json").read_text())["backbone_keys"]
    config = without_weights(load(name)).backbone
    # Swin reads its drop path rates back, which the meta device cannot give
    monkeypatch.setattr(torch, "linspace", lambda start, end, steps: torch.zeros(steps, device="cpu"))
    with torch.device("meta"):
        backbone = MODELS.build(config)
    keys = [[f"backbone.{key}", list(value.shape)] for key, value in backbone.state_dict().items()]
    assert keys == published[config.type]


@pytest.mark.parametrize("name", [n for n in CONFIGS if "/" not in n])
def test_own_configs_build(name):
    config = load(name)
    with torch.device("meta"):
        head = MODELS.build(without_weights(config).decode_head)
    assert head.num_classes == config.model.decode_head.num_classes
    init_default_scope("mmseg")
    dataset = {**config.test_dataloader.dataset, "lazy_init": True}
    tested = config.model.get("domains", {}).get(config.model.get("domain"), range(head.num_classes))
    assert len(DATASETS.build(dataset).metainfo["classes"]) == len(tested)

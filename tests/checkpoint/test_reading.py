"""Formats, and files that are no checkpoints, are damaged, or would run something."""

import hashlib
import json
import os
import pickle
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import AttributeDict
from safetensors.torch import save_file

from common.errors import InputError
from common.files import file_hash
from ldm.checkpoint import read_state_dict, save_state_dict

STATE = {
    "control_model.a.weight": torch.arange(6.0).reshape(2, 3),
    "control_model.a.bias": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "model.diffusion_model.steps": torch.tensor(7),
}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def test_round_trip_through_both_formats(tmp_path):
    save_state_dict(STATE, tmp_path / "a.ckpt")
    save_state_dict(read_state_dict(tmp_path / "a.ckpt"), tmp_path / "b.safetensors", {"seed": "1"})
    save_state_dict(read_state_dict(tmp_path / "b.safetensors"), tmp_path / "c.pth")
    assert same(read_state_dict(tmp_path / "c.pth"), STATE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "b.safetensors", "c.pth"]


def test_views_and_shared_memory_are_saved(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a": weight, "b": weight, "c": weight.T, "d": weight[1]}
    save_state_dict(state, tmp_path / "a.safetensors")
    assert same(read_state_dict(tmp_path / "a.safetensors"), state)


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)


def test_lightning_reads_what_is_saved(tmp_path):
    model = Tiny()
    save_state_dict(model.state_dict(), tmp_path / "a.ckpt")
    assert same(Tiny.load_from_checkpoint(tmp_path / "a.ckpt").state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "content", [STATE, {"state_dict": STATE, "epoch": 3}, {"module": STATE}, {"model": STATE, "iteration": 1}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_containers(tmp_path, content, zipped):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / "a.pth"), STATE)


@pytest.fixture
def old_module():
    """A module that is there while a checkpoint is written, and gone when it is read; its class must never run."""
    module = types.ModuleType("ldm.no_longer_there")

    class Scheduler:
        ran = False

        def __setstate__(self, state):
            Scheduler.ran = True

    Scheduler.__module__, Scheduler.__qualname__ = module.__name__, "Scheduler"
    module.Scheduler = Scheduler
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("zipped", [True, False])
def test_old_lightning_checkpoints(tmp_path, old_module, zipped):
    scheduler = old_module.Scheduler()
    scheduler.step = 3
    counts = defaultdict(list)
    counts["a"].append(1)
    content = {
        "state_dict": STATE,
        "callbacks": {ModelCheckpoint: {"best_model_score": np.float64(0.5), "dirpath": Path("logs")}},
        "hyper_parameters": AttributeDict(
            config=OmegaConf.create({"target": "ldm.x", "list": [1, {"a": 2}]}), counts=counts
        ),
        "lr_schedulers": [scheduler],
    }
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=zipped)
    del sys.modules["ldm.no_longer_there"]
    assert same(read_state_dict(tmp_path / "old.ckpt"), STATE)
    assert not old_module.Scheduler.ran


class Code:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("kind", ["zip", "old", "plain", "plain5"])
@pytest.mark.parametrize("function", ["os.system", "builtins.exec"])
def test_code_is_refused_and_not_run(tmp_path, kind, function):
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    code = {
        "os.system": Code(os.system, f"touch {marker}"),
        "builtins.exec": Code(exec, f"open({str(marker)!r}, 'w').close()"),
    }[function]
    content = {"state_dict": STATE, "extra": code}
    if kind.startswith("plain"):
        path.write_bytes(pickle.dumps({"extra": code}, protocol=5 if kind == "plain5" else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    name = function.replace("os.", "posix.")
    with pytest.raises(InputError, match=rf"evil\.ckpt: contains code \({name}\), refused and not run") as refusal:
        read_state_dict(path)
    assert "\n" not in str(refusal.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(code))  # the test's own check: elsewhere, it does run
    assert marker.exists()


def test_code_that_calls_itself_torch_is_refused(tmp_path):
    torch.save({"state_dict": STATE, "extra": Code(torch.hub.load, "repo", "model")}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"contains code \(torch\.hub\.load\)"):
        read_state_dict(tmp_path / "evil.ckpt")


def test_a_known_prefix_gives_no_right_to_run(tmp_path, old_module):
    ran = []
    old_module.run = lambda: ran.append(1)
    old_module.run.__module__, old_module.run.__qualname__ = old_module.__name__, "run"
    torch.save({"state_dict": STATE, "extra": Code(old_module.run)}, tmp_path / "a.ckpt")
    assert same(read_state_dict(tmp_path / "a.ckpt"), STATE)
    assert not ran


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    save_state_dict({"control_model.weight": torch.randn(100, 100)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"cut{suffix}: ") as refusal:
        read_state_dict(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.ckpt", b"", "empty file"),
        ("a.ckpt", b"\x89PNG\r\n\x1a\n" + b"0" * 100, "no checkpoint"),
        ("a.ckpt", pickle.dumps([1, 2]), "no checkpoint"),
        ("a.safetensors", b"not a header", "no safetensors file"),
        ("a.png", b"x", "no checkpoint"),
        ("folder/notes.txt", b"x", "no weights there"),
    ],
)
def test_no_checkpoint(tmp_path, name, content, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    given = path if path.parent == tmp_path else path.parent
    with pytest.raises(InputError, match=words) as refusal:
        read_state_dict(given)
    assert str(refusal.value).startswith(f"{given}: ")


def test_missing_and_without_weights(tmp_path):
    with pytest.raises(InputError, match=r"missing\.ckpt: no such checkpoint"):
        read_state_dict(tmp_path / "missing.ckpt")
    torch.save({"epoch": 3}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"a\.ckpt: holds no weights"):
        read_state_dict(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"b\.npz: unknown kind"):
        save_state_dict(STATE, tmp_path / "b.npz")


def test_a_state_dict_in_another_in_a_file_named_code(tmp_path):
    torch.save({"state_dict": {"state_dict": STATE}}, tmp_path / "code.ckpt")  # its entries are code/data.pkl, ...
    assert same(read_state_dict(tmp_path / "code.ckpt"), STATE)


def test_ema_weights_of_a_file(tmp_path):
    average = {"model_ema.diffusion_modelsteps": torch.tensor(9)}
    save_state_dict({**STATE, **average}, tmp_path / "a.ckpt")
    assert same(read_state_dict(tmp_path / "a.ckpt"), STATE)
    taken = {**STATE, "model.diffusion_model.steps": torch.tensor(9)}
    assert same(read_state_dict(tmp_path / "a.ckpt", use_ema=True), taken)
    save_state_dict(STATE, tmp_path / "b.ckpt")
    with pytest.raises(InputError, match=r"b\.ckpt: has no EMA weights"):
        read_state_dict(tmp_path / "b.ckpt", use_ema=True)


def test_sharded_folder_and_variants(tmp_path):
    part = tmp_path / "text_encoder"
    part.mkdir()
    first, second = {"text_model.final_layer_norm.bias": torch.ones(2)}, {"text_model.embeddings.x": torch.zeros(2)}
    shards = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    for name, state in shards.items():
        save_file(state, part / name)
    index = {"weight_map": {key: name for name, state in shards.items() for key in state}}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    prefix = "cond_stage_model.transformer."
    assert same(read_state_dict(tmp_path), {prefix + key: value for key, value in {**first, **second}.items()})
    save_file({key: value.half() for key, value in first.items()}, part / "model.fp16.safetensors")
    save_file(first, part / "model.safetensors")
    assert same(read_state_dict(tmp_path), {prefix + key: value for key, value in first.items()})


def test_hash(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / name).write_bytes(name.encode())
    assert file_hash(tmp_path / "one" / "a") == hashlib.sha256(b"a").hexdigest()[:16]
    before = file_hash(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert file_hash(tmp_path / "two") == before
    (tmp_path / "two" / "a").write_bytes(b"changed")
    assert file_hash(tmp_path / "two") != before
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        file_hash(tmp_path / "one")

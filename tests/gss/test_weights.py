"""Weights: published pickles without their code, checkpoints of every kind, and conversion."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from gss import InputError
from gss.conversion import ConvertOptions, MergeOptions, convert_dvae, merge_checkpoints
from gss.dvae import DVAE
from gss.weights import read_pickled_module, read_state_dict
from scripts import convert_dvae as convert_script
from scripts import merge_gss
from tests.gss.conftest import TINY

# torch.save notes the source of classes, which these do not have
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code", "ignore:.*torch.jit")


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """encoder.pkl and decoder.pkl as published: modules of a package ``dall_e`` that is not at hand when reading."""
    torch.manual_seed(0)
    dvae = DVAE(**TINY)
    modules = {"dall_e": types.ModuleType("dall_e")}
    for name in ("encoder", "decoder", "utils"):
        modules[f"dall_e.{name}"] = types.ModuleType(f"dall_e.{name}")
    classes = {}
    for kind, place in (
        ("Encoder", "encoder"),
        ("Decoder", "decoder"),
        ("EncoderBlock", "encoder"),
        ("Conv2d", "utils"),
    ):
        classes[kind] = type(kind, (nn.Module,), {"__module__": f"dall_e.{place}"})
        setattr(modules[f"dall_e.{place}"], kind, classes[kind])
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)

        def disguise(module):
            names = {"Conv2d": "Conv2d", "Block": "EncoderBlock", "Encoder": "Encoder", "Decoder": "Decoder"}
            copy = module
            if type(module).__module__ == "gss.dvae":
                copy = classes[names[type(module).__name__]]()
                copy.use_float16, copy.device = True, torch.device("cpu")
                for name, value in module.named_parameters(recurse=False):
                    copy.register_parameter(name, value)
            for name, child in module.named_children():
                copy._modules[name] = disguise(child)
            return copy

        for part in ("encoder", "decoder"):
            whole = nn.Sequential()
            whole.add_module("blocks", disguise(getattr(dvae, part)._modules["blocks"]))
            top = classes[part.capitalize()]()
            top._modules["blocks"] = whole._modules["blocks"]
            torch.save(top, tmp_path / f"{part}.pkl")
            torch.save(top, tmp_path / f"{part}_old.pkl", _use_new_zipfile_serialization=False)
    return tmp_path, {key: value.clone() for key, value in DVAE(dvae.state_dict()).state_dict().items()}


@pytest.mark.parametrize("container", ["", "_old"])
def test_published_pickles(pickled, command, container):
    folder, _ = pickled
    out = folder / "dvae.safetensors"
    arguments = [f"--{part}={folder / f'{part}{container}.pkl'}" for part in ("encoder", "decoder")]
    code, printed, errors = command(convert_script, *arguments, "--out", out)
    assert code == 0, errors
    assert "tensors written" in printed
    expected = {
        f"{part}.{k}": v
        for part in ("encoder", "decoder")
        for k, v in read_pickled_module(folder / f"{part}.pkl").items()
    }
    loaded = DVAE(str(out)).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


class Foreign:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_container", [True, False])
def test_foreign_code_is_refused_and_not_run(tmp_path, command, new_container):
    module = nn.Sequential(nn.ReLU())
    module.extra = Foreign(tmp_path / "ran")
    torch.save(module, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=new_container)
    code, _, errors = command(
        convert_script,
        "--encoder",
        tmp_path / "encoder.pkl",
        "--decoder",
        tmp_path / "encoder.pkl",
        "--out",
        tmp_path / "out.safetensors",
    )
    assert code == 2 and "refused" in errors and errors.count("\n") == 1
    assert "mkdir" in errors and not (tmp_path / "ran").exists() and not (tmp_path / "out.safetensors").exists()
    with pytest.raises(InputError, match=r"contains code .*convert_dvae"):
        read_state_dict(tmp_path / "encoder.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.module.Module.load_state_dict", "torch.nn.modules.lazy.exec", "builtins.eval"]
)
def test_only_module_classes_are_named(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    path = tmp_path / "x.pkl"
    # a pickle of protocol 0, in the old container: GLOBAL module attribute, called with ('1',)
    torch.save({}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(f"c{module}\n{attribute}\n(S'1'\ntR.".encode())
    with pytest.raises(InputError, match="refused"):
        read_pickled_module(path)


def test_programs_are_refused(tmp_path):
    torch.jit.script(nn.ReLU()).save(str(tmp_path / "x.pkl"))
    with pytest.raises(InputError, match="a TorchScript program, refused"):
        read_pickled_module(tmp_path / "x.pkl")


def test_checkpoints_of_mmengine(tmp_path):
    state = {f"decode_head.d_vae.{key}": value for key, value in DVAE(**TINY).state_dict().items()}
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({"state_dict": state, "message_hub": {"loss": buffer}, "meta": {"seed": 1}}, tmp_path / "iter_1.pth")
    assert read_state_dict(tmp_path / "iter_1.pth").keys() == state.keys()
    assert DVAE(str(tmp_path / "iter_1.pth")).vocab_size == 32


def test_conversion_from_a_checkpoint(tmp_path, tiny_model, command):
    model = tiny_model()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "gss.pth")
    code, _, errors = command(convert_script, "--checkpoint", tmp_path / "gss.pth", "--out", tmp_path / "d.safetensors")
    assert code == 0, errors
    found = DVAE(str(tmp_path / "d.safetensors")).state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.decode_head.d_vae.state_dict().items())
    code, _, errors = command(convert_script, "--out", tmp_path / "d.safetensors")
    assert code == 2 and "either --encoder and --decoder, or --checkpoint" in errors


def test_weights_are_made_by_a_call(tmp_path, tiny_weights):
    made = tmp_path / "made.pth"
    assert convert_dvae(ConvertOptions(checkpoint=tiny_weights, out=made)) == len(DVAE(str(made)).state_dict())
    with pytest.raises(InputError, match=r"^give either encoder and decoder, or checkpoint$"):
        ConvertOptions(encoder=tiny_weights, out=made)
    way_back = {"decode_head.projection.w": torch.ones(3)}
    torch.save({"state_dict": {"backbone.a": torch.zeros(2)}}, tmp_path / "ff.pth")
    torch.save({"state_dict": {"backbone.a": torch.ones(2), **way_back}}, tmp_path / "ftw.pth")
    options = MergeOptions(ff=tmp_path / "ff.pth", ftw=tmp_path / "ftw.pth", out=tmp_path / "merged.pth")
    assert merge_checkpoints(options) == {"ff": 1, "ftw": 1}
    assert read_state_dict(options.out)["backbone.a"].tolist() == [0, 0]
    with pytest.raises(InputError, match=r"^ftw .*ff\.pth: has no way back"):
        merge_checkpoints(MergeOptions(ff=options.ff, ftw=options.ff, out=options.out))


def test_merging(tmp_path, tiny_model, command):
    ff, ftw = tiny_model(), tiny_model("GenerativeSegHeadFTW")
    for name, parameter in ftw.named_parameters():
        parameter.data.fill_(1.0 if "d_vae" not in name else 2.0)
    torch.save({"state_dict": ff.state_dict()}, tmp_path / "ff.pth")
    torch.save({"state_dict": ftw.state_dict()}, tmp_path / "ftw.pth")
    arguments = ["--ff", tmp_path / "ff.pth", "--ftw", tmp_path / "ftw.pth", "--out", tmp_path / "merged.pth"]
    code, _, errors = command(merge_gss, *arguments)
    assert code == 0, errors
    merged, theirs = read_state_dict(tmp_path / "merged.pth"), ff.state_dict()
    fresh = tiny_model("GenerativeSegHeadFTW")
    fresh.load_state_dict(merged)  # nothing missing, nothing left over
    back = ("projection", "post_", "cls_segmap")
    for key, value in merged.items():
        expected = ftw.state_dict() if key.split(".")[1].startswith(back) else theirs
        assert torch.equal(value, expected[key])

    code, _, errors = command(merge_gss, *arguments[:3], tmp_path / "ff.pth", *arguments[4:])
    assert code == 2 and "has no way back" in errors
    wide = tiny_model(indice_cls_channel=24)
    torch.save({"state_dict": wide.state_dict()}, tmp_path / "ff.pth")
    code, _, errors = command(merge_gss, *arguments)
    assert code == 2 and "the two are of different models" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("backbone", ["swin", "hrnet"])
def test_the_published_merge(tmp_path, cli, backbone):
    """Its own argument names; what the first model has stays, its meta information and optimizer too."""
    ff = {"backbone.a": torch.zeros(2), "decode_head.b": torch.zeros(2)}
    post = {
        "backbone.a": torch.ones(2),
        "backbone.new": torch.ones(1),
        "decode_head.projection.w": torch.ones(3),
        "decode_head.conv_seg_pixel.w": torch.ones(3),
    }
    torch.save({"state_dict": ff, "meta": {"iter": 7}, "optimizer": {"state": {}}}, tmp_path / "ff.pth")
    torch.save({"state_dict": post, "meta": {"iter": 9}}, tmp_path / "post.pth")
    target = tmp_path / "merged.pth"
    line = ["--model-path", tmp_path / "ff.pth", "--post-model-path", tmp_path / "post.pth", "--target-path", target]
    cli("merge_gss", *line, f"--backbone-type={backbone}")
    merged = torch.load(target)
    added = {"decode_head.projection.w"} | (
        {"backbone.new", "decode_head.conv_seg_pixel.w"} & set(post if backbone == "swin" else ())
    )
    assert set(merged["state_dict"]) == set(ff) | added
    assert torch.equal(merged["state_dict"]["backbone.a"], ff["backbone.a"])
    assert merged["meta"] == {"iter": 7} and merged["optimizer"] == {"state": {}}
    line[3] = tmp_path / "ff.pth"
    assert "nothing in it that" in cli.refused("merge_gss", *line, "--backbone-type", backbone)


def test_options_are_taken_with_underscores_and_with_dashes(cli):
    published = cli("posterior_learning", "--num-classes", 4, "--max-masks=2", "--restarts", 1)
    assert published == cli("posterior_learning", "--num-classes", 4, "--max-masks", 2, "--restarts", 1)
    assert "unrecognized arguments: --num_classe" in cli.refused("posterior_learning", "--num_classe", 4)

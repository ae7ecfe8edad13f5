"""Start checkpoints against diffusers' own networks, through the command line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from omegaconf import OmegaConf

from cldm.build import create_model
from cldm.start_weights import fill
from common.command import run
from common.files import file_hash
from ldm.checkpoint import read_state_dict
from ldm.modules.encoders import ClipTokenizer
from scripts import init_checkpoint
from tests.checkpoint.small_peer import Peer, config
from tests.children import Command

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["farmland and a river", ""]


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    return Peer(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    OmegaConf.save(config(), path)
    return path


@pytest.fixture(scope="module")
def start(peer, config_file, tmp_path_factory):
    """A start checkpoint made from the peer's folder as a user would, and what the command printed."""
    out = tmp_path_factory.mktemp("start") / "start.safetensors"
    made = Command(
        out.with_suffix(".log"), "init_checkpoint", "--config", config_file, "--source", peer.folder, "--out", out
    )
    assert made.wait() == 0, made.said()
    return out, made.said()


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process: (exit code, what it printed, its errors)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["init_checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run(init_checkpoint.main)
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def model(config_file, start):
    return create_model(config_file, start[0])


def close(ours, theirs, tolerance=1e-4):
    assert theirs.std() > 0.01
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


def inputs(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    hint = torch.rand(2, 3, 64, 64, generator=generator)
    reference = torch.randn(2, 4, 8, 8, generator=generator)
    text = model.get_learned_conditioning(TEXTS)
    return x, torch.tensor([981, 321]), {"c_concat": [hint], "c_crossattn": [text], "c_ssl": [reference]}


@torch.no_grad()
def test_start_predicts_what_stable_diffusion_predicts(model, peer):
    x, t, cond = inputs(model)
    close(model.apply_model(x, t, cond), peer.unet(x, t, cond["c_crossattn"][0]).sample)


@torch.no_grad()
def test_text_encoder_and_autoencoder_agree(model, peer):
    close(model.get_learned_conditioning(TEXTS), peer.text(input_ids=ClipTokenizer()(TEXTS)).last_hidden_state)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    close(model.encode_first_stage(image).parameters, peer.vae.encode(image).latent_dist.parameters)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    close(model.decode_first_stage(model.scale_factor * latent), peer.vae.decode(latent).sample)


def test_branches_are_copies_and_silent(model):
    state = model.state_dict()
    for branch in ("control_model", "ssl_stage_model"):
        copied = 0
        for key, value in state.items():
            inside = key.removeprefix(branch + ".")
            if inside == key:
                continue
            if inside.split(".")[0] in ("time_embed", "input_blocks", "middle_block"):
                assert torch.equal(value, state["model.diffusion_model." + inside]), key
                copied += 1
            elif inside.startswith(("zero_convs.", "middle_block_out.", "input_hint_block.14.")):
                assert not value.any(), key
            else:
                assert inside.startswith("input_hint_block.")
                assert value.any(), key
        assert copied == 298


def test_both_branches_learn_from_the_first_step(config_file, start):
    """Zero convolutions and a zero output layer of the new attention would block each other's gradient for ever."""
    model = create_model(config_file, start[0])
    x, t, cond = inputs(model)
    (model.apply_model(x, t, cond) - torch.randn(x.shape)).square().mean().backward()
    read = model.model.diffusion_model.fused_features()
    for branch in (model.control_model, model.ssl_stage_model):
        gradients = [conv.weight.grad for i, conv in enumerate(z[0] for z in branch.zero_convs) if i in read]
        assert len(gradients) == 9
        assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.fixture(scope="module")
def sharded(peer, tmp_path_factory):
    """The same folder as others publish it: in shards, as a variant."""
    folder = tmp_path_factory.mktemp("sharded")
    for name, part in (("unet", peer.unet), ("vae", peer.vae), ("text_encoder", peer.text)):
        part.save_pretrained(folder / name, max_shard_size="3MB", variant="fp16")
    return folder


def other_spelling(folder, _):
    for path in list(folder.rglob("*.index.fp16.json")):
        path.rename(path.with_name(path.name.replace(".safetensors.index.fp16.json", ".fp16.safetensors.index.json")))


def pickled(folder, peer):
    for name in ("unet", "vae"):  # transformers writes .safetensors alone: its spelling stays
        shutil.rmtree(folder / name)
        getattr(peer, name).save_pretrained(
            folder / name, max_shard_size="3MB", variant="fp16", safe_serialization=False
        )


@pytest.mark.parametrize("change", [other_spelling, pickled])
def test_a_sharded_folder_with_a_variant(call, config_file, peer, sharded, start, tmp_path, change):
    folder, out = tmp_path / "folder", tmp_path / "start.safetensors"
    shutil.copytree(sharded, folder)
    change(folder, peer)
    assert call("--config", config_file, "--source", folder, "--out", out)[0] == 0
    made, expected = read_state_dict(out), read_state_dict(start[0])
    assert made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in made)


def index_of(part, change):
    path = next(part.glob("*index*"))
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def moved(table):
    first = next(iter(table["weight_map"]))
    return {**table, "weight_map": {**table["weight_map"], first: "../vae/diffusion_pytorch_model.safetensors"}}


FOLDERS = {
    "no index": (lambda f: next((f / "unet").glob("*index*")).unlink(), "unet: shards of weights without their"),
    "no shards": (lambda f: [path.unlink() for path in (f / "unet").glob("diffusion*")], "unet: no weights there"),
    "a shard is missing": (lambda f: next((f / "unet").glob("*00003-of*")).unlink(), "00003-of-00013.safetensors is"),
    "a shard is cut": (lambda f: next((f / "unet").glob("*00003-of*")).write_bytes(b"\x10"), "no safetensors file"),
    "a shard of another folder": (lambda f: index_of(f / "unet", moved), "is not a file beside it"),
    "the index is a list": (lambda f: index_of(f / "unet", lambda t: [t]), "index.fp16.json"),
    "the index is empty": (lambda f: index_of(f / "unet", lambda t: {"weight_map": {}}), "names no weights"),
    "the index maps to numbers": (lambda f: index_of(f / "unet", lambda t: {"weight_map": {"a": 1}}), "weight_map.a"),
    "the index is no JSON": (lambda f: next((f / "unet").glob("*index*")).write_bytes(b"\xff{"), "no readable JSON"),
    "a tensor is in no shard": (
        lambda f: index_of(f / "unet", lambda t: {"weight_map": {"x": min(t["weight_map"].values())}}),
        "x is not in its shard",
    ),
    "a folder is missing": (
        lambda f: [
            (f / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}'),
            shutil.rmtree(f / "unet"),
        ],
        "names a part unet",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_incomplete_folder_is_never_a_random_model(call, config_file, sharded, tmp_path, name):
    change, words = FOLDERS[name]
    folder = shutil.copytree(sharded, tmp_path / "folder")
    change(folder)
    result = call("--config", config_file, "--source", folder, "--out", tmp_path / "a.ckpt", "--allow-mismatch", "all")
    one_line(result, str(folder), words)
    assert not (tmp_path / "a.ckpt").exists()


def test_what_came_from_where_is_printed(start, peer):
    out, printed = start
    assert printed.splitlines() == [
        f"model.diffusion_model: 686 from {peer.folder}, 80 new, random, 40 new, identity, 20 zero",
        f"first_stage_model: 248 from {peer.folder}",
        f"cond_stage_model: 36 from {peer.folder}",
        "control_model: 298 copied from the U-Net's encoder, 28 zero, 14 new, random",
        "ssl_stage_model: 298 copied from the U-Net's encoder, 28 zero, 14 new, random",
        f"{out}: 1803 tensors, {sum(value.numel() for value in read_state_dict(out).values()):,} numbers, fp32",
    ]


def test_same_seed_same_file(call, config_file, start, tmp_path):
    """From the start checkpoint itself, new branches aside; the random parts follow the seed."""
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        out = tmp_path / f"{name}.safetensors"
        arguments = "--config", config_file, "--source", start[0], "--reset-branches", "--out", out, "--seed", seed
        assert call(*arguments)[0] == 0
    a, b, c = (read_state_dict(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    differ = {key.split(".")[0] for key in a if not torch.equal(a[key], c[key])}
    assert differ == {"control_model", "ssl_stage_model"}


@torch.no_grad()
def test_a_trained_controlnet_becomes_the_mask_branch(call, config_file, peer, tmp_path):
    torch.manual_seed(4)
    control = ControlNetModel.from_unet(peer.unet).eval()
    for weight in control.parameters():
        if not weight.any():
            weight.copy_(0.1 * torch.randn_like(weight))
    control.save_pretrained(tmp_path / "controlnet")
    out = tmp_path / "start.ckpt"
    code, printed, _ = call("--config", config_file, "--source", peer.folder, tmp_path / "controlnet", "--out", out)
    assert code == 0
    assert f"control_model: 340 from {tmp_path / 'controlnet'}" in printed
    assert "ssl_stage_model: 298 copied from the U-Net's encoder" in printed

    model = create_model(config_file, out)
    x, t, cond = inputs(model)
    hint, text = cond["c_concat"][0], cond["c_crossattn"][0]
    down, middle = control(x, t, text, controlnet_cond=hint, return_dict=False)
    for ours, theirs in zip(model.control_model(x, hint, t, text), [*down, middle], strict=True):
        close(ours, theirs)
    # its features are not zero, and still the start predicts what Stable Diffusion predicts
    close(model.apply_model(x, t, cond), peer.unet(x, t, text).sample)


def test_half_precision(call, config_file, start, tmp_path):
    out = tmp_path / "half.safetensors"
    assert call("--config", config_file, "--source", start[0], "--out", out, "--precision", "fp16")[0] == 0
    state, whole = read_state_dict(out), read_state_dict(start[0])
    assert torch.equal(state["alphas_cumprod"], whole["alphas_cumprod"])
    key = "model.diffusion_model.out.2.weight"
    assert torch.equal(state[key], whole[key].half())
    assert create_model(config_file, out).dtype == torch.float32


def one_line(result, *words):
    code, printed, error = result
    assert code == 2
    assert not printed
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_incomplete_source_is_refused(call, config_file, peer, tmp_path):
    out = tmp_path / "start.ckpt"
    arguments = "--config", config_file, "--source", peer.folder / "unet", "--out", out
    one_line(
        call(*arguments),
        "first_stage_model: 248 missing",
        "cond_stage_model: 36 missing",
        "--allow-mismatch first_stage_model cond_stage_model",
    )
    assert not list(tmp_path.iterdir())
    code, printed, _ = call(*arguments, "--allow-mismatch", "first_stage_model", "cond_stage_model")
    assert code == 0
    assert "first_stage_model: 248 random" in printed


def test_another_architecture_is_refused(call, start, tmp_path):
    OmegaConf.save(config({"model_channels": 64}), tmp_path / "other.yaml")
    one_line(
        call("--config", tmp_path / "other.yaml", "--source", start[0], "--out", tmp_path / "a.ckpt"),
        str(start[0]),
        "Its U-Net starts with 32 channels, the model's with 64.",
        "model.diffusion_model.time_embed.0.weight: 128x32 in the file, 256x64 in the model",
    )
    OmegaConf.save(config({"context_dim": 40}, {"hidden_size": 40}), tmp_path / "other.yaml")
    one_line(
        call("--config", tmp_path / "other.yaml", "--source", start[0], "--out", tmp_path / "a.ckpt"),
        "It attends to texts of 48 channels, the model to 40.",
    )
    assert not (tmp_path / "a.ckpt").exists()


def test_damaged_source_and_bad_names_are_refused(call, config_file, start, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(start[0].read_bytes()[:100_000])
    options = "--config", config_file, "--out"
    one_line(call(*options, tmp_path / "a.ckpt", "--source", cut), "cut.safetensors: no safetensors file, cut off")
    one_line(call(*options, tmp_path / "a.ckpt", "--source", tmp_path / "none.ckpt"), "none.ckpt: no such checkpoint")
    one_line(call(*options, tmp_path / "a.txt", "--source", start[0]), "a.txt: end it with .safetensors or .ckpt")
    one_line(call(*options, cut / "a.ckpt", "--source", start[0]), "cannot write there")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.safetensors"]


def test_hash_of_a_checkpoint_follows_its_content(start, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(start[0].read_bytes())
    assert file_hash(copy) == file_hash(start[0])


def test_without_a_trained_u_net_nothing_is_silenced():
    """Zeros protect what a trained U-Net predicts; of a first stage alone, the branches keep their own start."""
    own = {"control_model.zero_convs.0.0.weight": torch.ones(1), "first_stage_model.a": torch.ones(1)}
    state = {"first_stage_model.a": torch.zeros(1)}
    fill(state, {}, own)
    assert state.keys() == {"first_stage_model.a"}
    state["model.diffusion_model.out.weight"] = torch.ones(1)
    fill(state, {}, own)
    assert not state["control_model.zero_convs.0.0.weight"].any()

"""Training a first stage through its command: it learns, goes on as if unbroken, and writes what others read."""

import os
import signal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.checkpoint import read_state_dict
from ldm.first_stage.data import FirstStageData, read_bands, split, to_tensor
from ldm.first_stage.loading import load_first_stage
from ldm.first_stage.run import measure_latents
from ldm.first_stage.schema import DataOptions
from ldm.training.checkpoints import TrainingDiverged


def weights(path):
    state = torch.load(path, weights_only=False)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def described(run):
    values = yaml.safe_load((run / "first_stage.yaml").read_text())
    first_stage, _ = load_first_stage(values, lambda _: "file", run / "first_stage.safetensors")
    return first_stage, values["model"]["params"]


def test_it_learns_to_reconstruct_and_its_latents_get_unit_variance(cli, images, tmp_path, line):
    settings = ("loss.discriminator=null", "loss.gradient=0", "training.max_steps=100", "data.batch_size=4")
    seldom = [f"training.{what}_every=50" for what in ("save", "validate", "pictures")]
    said = cli(
        "train_vae",
        *line(
            "run", *settings, *seldom, "data.validation_share=0.5", "first_stage_config.params.ddconfig.ch_mult=[1, 2]"
        ),
    )
    run = tmp_path / "run"
    first_stage, params = described(run)
    files = sorted(images.iterdir())
    real = torch.stack([to_tensor(read_bands(path)[:16, :16], (0, 255)) for path in files])
    error = (first_stage.decode(first_stage.encode(real).mode()) - real).square().mean()
    spread = (real - real.mean((0, 2, 3), keepdim=True)).square().mean()
    assert error < 0.7 * spread, error / spread  # of no training: more than 1
    training, held_out = split(files, 0.5)
    assert held_out
    assert f"{len(training)} images to train on, {len(held_out)} to validate" in said and "val/psnr" in said
    data = FirstStageData(training, held_out, DataOptions(crop=16), steps=1, seed=0)
    assert params["scale_factor"] * measure_latents(first_stage, data, 8)[2] == pytest.approx(1, rel=1e-3)
    assert params["channels"] == 4 and {"first_stage_model"} == {
        name.split(".")[0] for name in read_state_dict(run / "first_stage.safetensors")
    }
    sheet = np.asarray(Image.open(run / "images" / "step_000050.png"))
    assert sheet.shape == (len(held_out) * 20 - 4, 36, 3)  # input and reconstruction of 16 px, gaps of 4
    report = tmp_path / "scores.json"
    judged = ("--config", run / "first_stage.yaml", "--weights", run / "first_stage.safetensors", "--images", images)
    assert "10 images: PSNR" in cli("evaluate_first_stage", *judged, "--out", report)


def test_a_resumed_run_is_the_unbroken_run(cli, tmp_path, images, line):
    cli("train_vae", *line("whole"))
    cli("train_vae", *line("half", "training.max_steps=3"))  # the discriminator has made one step
    resumed = ("--images", images, "--device", "cpu", "--resume", tmp_path / "half")
    said = cli("train_vae", *resumed, "training.max_steps=4", "data.num_workers=1")
    bars = [bar for line in said.splitlines() for bar in line.split("\r") if bar.startswith("Epoch")]
    assert "| 4/4 [" in bars[-1] and not any("/?" in bar for bar in bars)  # it counts the steps before the run went on
    whole, half = (weights(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "half"))
    assert whole.keys() == half.keys() and any(name.startswith("discriminator.") for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], half[name])] == []
    for name in ("first_stage.yaml", "first_stage.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "half" / name).read_bytes()
    (tmp_path / "half" / "first_stage.safetensors").unlink()
    cli("train_vae", *resumed, "--measure")
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "half" / name).read_bytes()


def test_sigterm_saves_and_ends(cli, tmp_path, line, monkeypatch):
    from ldm.first_stage.training import FirstStageTraining

    step = FirstStageTraining.training_step

    def interrupted(self, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FirstStageTraining, "training_step", interrupted)
    cli("train_vae", *line(), code=143)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == 3
    assert not (tmp_path / "run" / "first_stage.yaml").exists()


def test_the_discriminator_starts_at_its_step_and_moves_nothing_before(cli, tmp_path, line):
    cli("train_vae", *line("before", "training.max_steps=2"))
    cli("train_vae", *line("after", "training.max_steps=3"))
    before, after = (weights(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("before", "after"))
    torch.manual_seed(0)
    names = [name for name in before if name.startswith("discriminator.")]
    assert any(not torch.equal(before[name], after[name]) for name in names)
    cli("train_vae", *line("alone", "training.max_steps=2", "loss.discriminator.start=9"))
    alone = weights(tmp_path / "alone" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(before[name], alone[name]) for name in names)


def test_what_is_no_number_ends_the_training_with_a_word(cli, tmp_path, line, monkeypatch):
    from ldm.first_stage import training

    monkeypatch.setattr(training, "hinge", lambda real, made: real.mean() * torch.nan)
    said = cli("train_vae", *line(), code=1)
    assert "error: the loss's term discriminator is nan at step 2" in said and "last.ckpt holds step 2" in said
    assert TrainingDiverged.__name__ not in said


def test_more_bands_than_three(cli, tmp_path, line):
    folder = tmp_path / "bands"
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).random((20, 20, 5), dtype=np.float32))
    network = "first_stage_config.params.ddconfig"
    bands = (f"{network}.in_channels=5", f"{network}.out_ch=5", "data.range=[0.0, 1.0]", "data.validation_share=0.0")
    words = [folder if word == line()[1] else word for word in line("run", *bands)]
    cli("train_vae", *words)
    first_stage, _ = described(tmp_path / "run")
    assert first_stage.encode(torch.zeros(1, 5, 16, 16)).mode().shape == (1, 4, 4, 4)


def test_a_crop_depends_on_its_number_alone(images):
    options = DataOptions(crop=16)
    data = FirstStageData(sorted(images.iterdir()), [], options, steps=9, seed=3)
    other = FirstStageData(sorted(images.iterdir()), [], options, steps=1, seed=3)
    assert all(torch.equal(data.crops[i]["image"], other.crops[i]["image"]) for i in (5, 1))
    assert not torch.equal(data.crops[0]["image"], data.crops[1]["image"])


def test_the_decoder_alone_learns_and_latents_stay_what_they_are(cli, tmp_path, line):
    cli("train_vae", *line("first", "training.max_steps=2"))
    start = tmp_path / "first" / "first_stage.safetensors"
    cli("train_vae", *line("second", "training.trainable=decoder"), "--pretrain-path", start)
    before, after = (read_state_dict(path) for path in (start, tmp_path / "second" / "first_stage.safetensors"))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}

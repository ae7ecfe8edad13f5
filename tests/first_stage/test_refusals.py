"""What a first stage's training refuses before its work, and in one line."""

import numpy as np
import pytest
from PIL import Image

SETTINGS = {
    "first_stage_config.params.ddconfig.out_ch=4": "out_ch: 4, but in_channels is 3",
    "data.crop=18": "data.crop: 18: must be a multiple of 4",
    "data.crop=48": "24 x 32 pixels, smaller than the crops of 48; leave it out, or set data.crop to 24 or less",
    "data.crop=4": "the discriminator needs 6 pixels",
    "data.range=[5.0, 5.0]": "data.range",
    "loss.discriminator.start=x": "loss.discriminator.start",
    "loss.hinge=1": "loss.hinge",
    "first_stage_config.target=ldm.models.autoencoder.SpaceToDepth": "first_stage_config.target",
    "loss.perceptual_weights=nowhere.pth": "nowhere.pth",
    "training.trainable=decoder": "--pretrain-path is needed",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(cli, line, tmp_path, setting):
    assert SETTINGS[setting] in cli.refused("train_vae", *line("run", setting))
    assert not (tmp_path / "run").exists()


def test_images(cli, line, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    words = [folder if word == line()[1] else word for word in line("run", "data.validation_share=0.0")]
    assert "no image in it" in cli.refused("train_vae", *words)
    np.save(folder / "a.npy", np.zeros((20, 20, 4), np.uint8))
    Image.new("RGB", (20, 20)).save(folder / "b.png")
    assert "a.npy: has 4 bands, the first stage reads 3" in cli.refused("train_vae", *words)
    np.save(folder / "a.npy", np.full((20, 20, 3), np.nan, np.float32))
    assert "a.npy: holds values that are no numbers" in cli.refused("train_vae", *words)
    np.save(folder / "a.npy", np.zeros((20, 20), np.uint8))
    assert "(height, width, bands)" in cli.refused("train_vae", *words)
    (folder / "a.npy").write_bytes(b"nothing")
    assert "a.npy: cannot be read" in cli.refused("train_vae", *words)
    (folder / "a.npy").unlink()
    (folder / "b.png").write_bytes(b"nothing")
    assert "b.png" in cli.refused("train_vae", *words)


def test_runs(cli, line, images, tmp_path):
    assert "--out and --resume: give one" in cli.refused("train_vae", "--images", images)
    assert "--resume" in cli.refused("train_vae", "--images", images, "--resume", tmp_path)
    assert "--measure: name the run by --resume" in cli.refused("train_vae", *line("run", "--measure"))
    cli("train_vae", *line("run", "training.max_steps=1"))
    assert "holds a run" in cli.refused("train_vae", *line("run"))
    resumed = ("--images", images, "--device", "cpu", "--resume", tmp_path / "run")
    other = "first_stage_config.params.embed_dim=8"
    assert "does not fit the model" in cli.refused("train_vae", *resumed, other)
    assert "--pretrain-path with --resume" in cli.refused("train_vae", *resumed, "--pretrain-path", "x.ckpt")


def test_scores(cli, images, tmp_path, line):
    judged = ("evaluate_first_stage", "--images", images, "--out", tmp_path / "scores.json", "--config")
    config = line()[3]
    assert "--weights: ldm.models.autoencoder.AutoencoderKL needs them" in cli.refused(*judged, config)
    assert "--masks and --segmentor: one needs the other" in cli.refused(*judged, config, "--masks", images)
    fixed = tmp_path / "fixed.yaml"
    fixed.write_text("first_stage_config: {target: ldm.models.autoencoder.SpaceToDepth, params: {factor: 4}}")
    assert "has none; leave them out" in cli.refused(*judged, fixed, "--weights", "x.ckpt")
    (tmp_path / "none.yaml").write_text("data: {}")
    assert "no first_stage_config" in cli.refused(*judged, tmp_path / "none.yaml")
    assert "10 images: PSNR" in cli(*judged, fixed) or "nothing lost" in cli(*judged, fixed)

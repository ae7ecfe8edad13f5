"""What a model reads: long prompts, references of another shape, and how few steps begin."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.control_ldm import ControlLDM
from ldm.modules.encoders import FrozenCLIPEmbedder
from tests.conftest import SMALL
from tests.synthesis.conftest import close, images, records

ONE = ("--only", "train_0003_seed_5")
PICTURE = "train_0003_seed_5.png"
LONG = "a satellite image of " + "water forest road building field " * 19


def with_prompts(scenes, path, *prompts):
    lines = [json.loads(line) for line in (scenes / "inference_set_items.json").read_text().splitlines()]
    path.write_text(
        "\n".join(json.dumps({**line, "prompt": prompts[i % len(prompts)]}) for i, line in enumerate(lines))
    )
    return path


def test_prompts_that_are_cut_are_named_with_what_is_left_out(cli, command, scenes, tmp_path):
    for ending in ("in winter, covered by snow", "in summer"):
        items = with_prompts(scenes, tmp_path / "items.json", LONG + ending)
        said = cli("inference", *command(tmp_path / ending, "--txt-file", items, *ONE))
        assert f"{items} line 1: the prompt's " in said and "are cut to 75; left out: " in said
        assert "8 prompts" in said and "--long-prompts" in said
        (record,) = records(tmp_path / ending)
        assert record["prompt"] == LONG + ending and LONG.startswith(record["prompt_read"])
    cut, same = (images(tmp_path / ending)[PICTURE] for ending in ("in winter, covered by snow", "in summer"))
    assert np.array_equal(cut, same)
    cli("inference", *command(tmp_path / "whole", "--txt-file", items, "--long-prompts", *ONE))
    assert not close(images(tmp_path / "whole")[PICTURE], cut)
    assert records(tmp_path / "whole")[0]["prompt_read"] == LONG + "in summer"


def test_short_prompts_do_not_notice_long_ones(cli, command, made, scenes, tmp_path):
    """In one batch or not: their picture is that of the published cut."""
    lines = [json.loads(line) for line in (scenes / "inference_set_items.json").read_text().splitlines()]
    lines[0]["prompt"] = LONG + "in summer"
    (tmp_path / "items.json").write_text("\n".join(map(json.dumps, lines)))
    said = cli("inference", *command(tmp_path / "out", "--txt-file", tmp_path / "items.json", "--long-prompts"))
    assert "left out" not in said
    assert [not close(images(tmp_path / "out")[name], picture) for name, picture in images(made).items()] == [
        True,
        *[False] * 7,
    ]


def test_training_names_the_prompts_that_it_cuts(cli, scenes, tmp_path):
    items = with_prompts(scenes, scenes / "long.json", LONG + "in summer", "forest")
    lines = [json.loads(line) for line in (scenes / "train_set_items.json").read_text().splitlines()]
    items.write_text("\n".join(json.dumps({**line, "prompt": LONG}) for line in lines))
    try:
        arguments = [
            "--base",
            SMALL,
            "--config-model",
            SMALL,
            "-n",
            "a",
            "--logdir",
            tmp_path,
            "--data-root",
            scenes,
            "--train-txt-file",
            items,
            "--val-txt-file",
            "test_set_items.json",
            "--gpus",
            "cpu",
            "--dry-run",
            "--allow-mismatch",
            "all",
            f"model.params.classes={scenes / 'classes.json'}",
        ]
        assert f"{items} line 1: the prompt's " in cli("train", *arguments)
        windows = "model.params.cond_stage_config.params.max_windows=2"
        assert "left out" not in cli("train", *arguments, windows)
        assert "max_windows" in cli.refused("train", *arguments, windows.replace("=2", "=5"))
    finally:
        items.unlink()


def test_windows_are_read_one_by_one_and_repeating_a_context_changes_nothing():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    one = FrozenCLIPEmbedder(**shape)
    three = FrozenCLIPEmbedder(**shape, max_windows=3)
    three.load_state_dict(one.state_dict())
    words = ["water", "forest"] * 80  # a token each
    texts = ["short", " ".join(words[:75]), " ".join(words[:76]), " ".join(words)]
    separate = [three.encode(text) for text in texts]
    assert [part.shape[1] for part in separate] == [77, 77, 154, 231]
    assert torch.equal(separate[0], one.encode(texts[0])) and torch.equal(separate[1], one.encode(texts[1]))
    parts = [" ".join(words[i : i + 75]) for i in (0, 75, 150)]
    assert torch.equal(separate[3], torch.cat([one.encode(part) for part in parts], 1))
    batch = three.encode(texts)
    assert batch.shape == (4, 6 * 77, 16)
    for repeated, part in zip(batch, separate, strict=True):
        assert torch.equal(repeated, part[0].repeat(6 * 77 // part.shape[1], 1))
    query = torch.randn(4, 1, 5, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    for i, part in enumerate(separate):
        torch.testing.assert_close(attend(query[i], batch[i][None], batch[i][None]), attend(query[i], part, part))


@pytest.fixture
def references(cli, command, scenes, tmp_path, monkeypatch):
    """What the model sees of a reference: (32, 32, 3) uint8."""
    data, seen = tmp_path / "data", []
    shutil.copytree(scenes, data)
    item = json.loads((data / "inference_set_items.json").read_text().splitlines()[3])
    real = ControlLDM.image_latent

    def spy(model, image, *more):
        if not image.is_meta:  # the check of the configuration builds an outline without memory
            seen.append(((image[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
        return real(model, image, *more)

    monkeypatch.setattr(ControlLDM, "image_latent", spy)

    def look(image, *more):
        image.save(data / "reference.png")
        (data / "one.json").write_text(json.dumps({**item, "ref_image": "reference.png"}))
        arguments = ("--data-root", data, "--txt-file", data / "one.json", "--remake", *more)
        cli("inference", *command(tmp_path / "out", *arguments))
        return seen.pop()

    return look


def test_a_reference_of_another_shape_is_cropped_not_stretched(references):
    y, x = np.mgrid[:32, :96]
    circle = np.where(((y - 16) ** 2 + (x - 48) ** 2 < 144)[..., None], (200, 90, 60), (90, 120, 70)).astype(np.uint8)
    wide = Image.fromarray(circle)
    assert np.array_equal(references(wide), circle[:, 32:64])
    stretched = wide.resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(references(wide, "--reference-fit", "stretch"), stretched)
    large = wide.resize((192, 64), Image.Resampling.NEAREST)
    tall = references(large.transpose(Image.Transpose.ROTATE_90))[..., 0] > 150
    assert abs(np.ptp(np.nonzero(tall)[0]) - np.ptp(np.nonzero(tall)[1])) <= 1  # a circle


def test_a_palette_image_is_a_reference_like_any_other(references, scenes):
    palette = Image.open(next((scenes / "ref_img").iterdir())).resize((50, 50)).quantize(64)
    assert np.array_equal(references(palette), references(palette.convert("RGB")))
    assert np.array_equal(references(palette), palette.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_one_step_begins_at_the_noises_end(cli, command, tmp_path, sampler):
    options = ("--ddim-steps", "1", "--sampler", sampler, *ONE)
    assert "stay noisy" not in cli("inference", *command(tmp_path / "auto", *options))
    assert "begin at 1 of 1000" in cli("inference", *command(tmp_path / "leading", *options, "--spacing", "leading"))
    auto, leading = (images(tmp_path / name)[PICTURE].astype(float) for name in ("auto", "leading"))
    assert records(tmp_path / "auto")[0]["spacing"] == "trailing"
    assert np.abs(auto - leading).mean() > 5


def test_few_steps_are_warned_of(cli, command, tmp_path):
    said = {steps: cli("inference", *command(tmp_path, "--ddim-steps", steps, "--dry-run")) for steps in ("3", "20")}
    assert "begin at 667 of 1000" in said["3"] and "stay noisy" not in said["20"]
    line = cli.refused("inference", *command(tmp_path / "out", "--ddim-steps", "61", "--spacing", "trailing"))
    assert "--ddim-steps 61" in line and not (tmp_path / "out").exists()


def test_a_class_table_that_the_mask_branch_does_not_read(cli, command, tmp_path):
    from omegaconf import OmegaConf

    config = OmegaConf.load(SMALL)
    config.model.params.hint_encoding = "onehot"
    OmegaConf.save(config, tmp_path / "onehot.yaml")
    assert "mask branch reads 3" in cli.refused("inference", *command(tmp_path, "--config", tmp_path / "onehot.yaml"))

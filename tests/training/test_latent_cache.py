"""Latents that are computed once: the training is the same, the folder is whole, and no other weights read it."""

import json

import pytest
import torch

from cldm.build import create_model
from cldm.data.computed_once import weights_hash
from cldm.data.latent_cache import CachedLatents
from cldm.data.pairs import PairedImages
from cldm.training.text_cache import CachedTexts
from common.errors import InputError
from ldm.modules.encoders import FrozenCLIPEmbedder
from tests.conftest import SMALL
from tests.training.test_training import options, validation_losses, weights

EPOCHS = (
    "--precision",
    "32-true",
    "lightning.trainer.max_steps=4",
    "lightning.trainer.check_val_every_n_epoch=1",
    "data.params.batch_size=4",
    "lightning.callbacks.image_logger.params.max_images=0",
)


def items_of(scenes, **more):
    choices = {"size": 32, "flip_p": 0.5, "empty_prompt_p": 0.4, "drop_mask_p": 0.3, "drop_reference_p": 0.3}
    table = str(scenes / "classes.json")
    data = {"hint_encoding": "palette", "classes": table, "multiple_of": 16, "augmentation": {"p": 0.5}}
    return PairedImages(scenes, scenes / "train_set_items.json", **{**choices, **data, **more})


def test_the_first_stage_takes_a_few_images_at_once_however_many_variants(scenes, tmp_path):
    sizes = []

    def counting(images):
        sizes.append(len(images))
        return encode(images)

    cache = CachedLatents(items_of(scenes), tmp_path / "cache", "weights", variants=9)
    cache.fill(counting, progress=False)
    assert sizes[:6] == [4, 4, 1] * 2 and cache[8, 0]["jpg_posterior"].shape[0] == 2


def encode(images):  # a posterior of one channel with spread: the mean of the image, and of its square
    mean = images.mean(1, keepdim=True)
    return torch.cat([mean, (images**2).mean(1, keepdim=True)], 1)


def test_an_epoch_is_its_variant_but_for_what_is_hidden_and_drawn(scenes, tmp_path):
    images = items_of(scenes)
    cache = CachedLatents(images, tmp_path / "cache", "weights", variants=3)
    assert cache.fill(encode, progress=False) == 8 and len(cache) == len(images) == 8
    hidden = set()
    for epoch in range(6):
        for i in range(8):
            got, now, then = cache[epoch, i], images[epoch, i], images[epoch % 3, i]
            for key in ("jpg", "ssl"):
                assert torch.equal(got.pop(f"{key}_posterior"), encode(then[key][None])[0])
                del now[key]
            assert got.keys() == now.keys()
            hint = got.pop("hint")
            assert all(got[key] == now[key] for key in got)  # text, seed, what is hidden: the epoch's own
            whole = now["hint"].any() and then["hint"].any()
            assert torch.equal(hint, then["hint"]) if whole else hint.any() == now["hint"].any()
            hidden.add((bool(now["hint"].any()), bool(got["reference_given"])))
    assert len(hidden) == 4
    assert cache[2]["seed"] == images[2]["seed"]


def test_the_folder_goes_on_and_is_of_one_thing(scenes, tmp_path):
    images, folder = items_of(scenes), tmp_path / "cache"

    def stopped(pictures):
        if len(list(folder.glob("*.safetensors"))) == 3:
            raise KeyboardInterrupt
        return encode(pictures)

    with pytest.raises(KeyboardInterrupt):
        CachedLatents(images, folder, "weights").fill(stopped, progress=False)
    again = CachedLatents(images, folder, "weights")
    assert again.fill(encode, progress=False) == 5 and again.fill(encode, progress=False) == 0
    assert not list(folder.glob(".*.tmp.*"))
    others = {
        "first_stage": lambda: CachedLatents(images, folder, "other weights"),
        "variants": lambda: CachedLatents(images, folder, "weights", variants=2),
        "dtype": lambda: CachedLatents(images, folder, "weights", half=True),
        "augmentation": lambda: CachedLatents(items_of(scenes, augmentation={"p": 0.1}), folder, "weights"),
        "shared_color": lambda: CachedLatents(items_of(scenes, shared_color=0.1), folder, "weights"),
    }
    for what, make in others.items():
        with pytest.raises(InputError, match=f"its latents have another {what} "):
            make()
    CachedLatents(items_of(scenes, drop_mask_p=0.9, empty_prompt_p=0.0), folder, "weights")  # not of its pixels
    half = CachedLatents(images, tmp_path / "half", "weights", half=True)
    half.fill(encode, progress=False)
    latents = half[0]["jpg_posterior"], again[0]["jpg_posterior"]
    assert latents[0].dtype == torch.float32 and torch.allclose(*latents, atol=1e-3) and not torch.equal(*latents)
    with pytest.raises(InputError, match=r"is no number in torch\.float16"):
        CachedLatents(images, tmp_path / "much", "weights", half=True).fill(lambda x: encode(x) * 1e6, progress=False)
    images.has_gaps = True  # TIFFs have come into the list: what was cached before them is whole
    assert again[0]["valid"].shape == (1, 32, 32) and again[0]["valid"].all()
    half.files[0].write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"cannot be read .* remove it"):
        half[0]


def test_the_hash_is_of_every_number(scenes):
    model = create_model(SMALL, classes=str(scenes / "classes.json")).first_stage_model  # tables, no weights
    before = weights_hash(model)
    assert before == weights_hash(model) and len(before) == 16
    model.deviation[-1, -1] += 1e-3
    assert weights_hash(model) != before


def test_texts_are_the_encoders_and_of_one_encoder(tmp_path):
    params = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    encoder = FrozenCLIPEmbedder(**params, max_windows=2)
    folder, prompts = tmp_path / "text", ["houses", "houses", "a river " * 60]
    expected = encoder.encode([prompts[0], prompts[2], ""])
    texts = CachedTexts(encoder, {**params, "max_windows": 2}, prompts, folder)
    assert texts.read("houses") is None and texts.fill(progress=False) == len(texts) == 3
    assert CachedTexts(encoder, {**params, "max_windows": 2}, ["houses", "a road"], folder).fill(progress=False) == 1

    def refused(*arguments):
        raise AssertionError("computed")

    encoder.kept, compute, encoder.embed = texts.read, encoder.embed, refused
    encoder.max_windows = 3  # forgets what it remembers
    assert torch.equal(encoder.encode([prompts[0], prompts[2], ""]), expected)  # in windows, repeated to one length
    encoder.rest()
    encoder.double()  # as a model takes its parts along
    assert next(encoder.parameters()).dtype == torch.float32
    assert torch.equal(encoder.encode([prompts[0], prompts[2], ""]), expected.double())
    encoder.embed = compute
    assert encoder.encode("not kept").dtype == torch.float64

    others = {
        "settings": lambda: CachedTexts(encoder, {**params, "max_windows": 1}, prompts, folder),
        "dtype": lambda: CachedTexts(encoder, {**params, "max_windows": 2}, prompts, folder, half=True),
        "text_encoder": lambda: CachedTexts(
            FrozenCLIPEmbedder(**params, max_windows=2), {**params, "max_windows": 2}, prompts, folder
        ),
    }
    for what, make in others.items():
        with pytest.raises(InputError, match=f"cache_latents.* its texts have another {what} "):
            make()
    next(folder.glob("*.safetensors")).write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"cannot be read .* remove it"):
        [texts.read(prompt) for prompt in texts.prompts]


def test_a_training_with_a_cache_is_the_one_without(cli, scenes, tmp_path):
    plain = cli("train", *options(scenes, tmp_path, "plain", *EPOCHS))
    folder = tmp_path / "latents"
    cached = ("--cache-latents", folder, *EPOCHS)  # 2 epochs, and more variants
    assert "latents of" not in plain and not folder.exists()
    out = cli("train", *options(scenes, tmp_path, "first", *cached))
    assert f"train: latents of 8 items in {folder / 'train'}, 8 of them made now" in out
    prompts = {json.loads(line)["prompt"] for line in (scenes / "train_set_items.json").read_text().splitlines()}
    assert f"in {folder / 'text'}, " in out and len(list((folder / "text").glob("*.safetensors"))) > len(prompts) > 0
    assert validation_losses(tmp_path / "first") == pytest.approx(validation_losses(tmp_path / "plain"), rel=1e-5)
    expected = weights(tmp_path / "plain")
    for name, weight in weights(tmp_path / "first").items():
        assert torch.allclose(weight, expected[name], atol=1e-5), name

    out = cli("train", "--resume", tmp_path / "first", "--gpus", "cpu", "lightning.trainer.max_steps=5")
    assert "8 items in" in out and out.count("0 of them made now") == 3 and "trained 5 steps" in out
    about = json.loads((folder / "train" / "cache.json").read_text())
    (folder / "train" / "cache.json").write_text(json.dumps({**about, "first_stage": "0" * 16}))
    line = cli.refused("train", *options(scenes, tmp_path, "no", *cached))
    assert f"--cache-latents {folder / 'train'}: its latents have another first_stage (0000" in line

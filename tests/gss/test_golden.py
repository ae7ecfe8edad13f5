"""Every number recorded from the published code: keys, tokens, maps, logits, colors, losses, gradients."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from gss.dvae import DVAE
from gss.maskige import Maskige
from gss.palette import load_palette, min_distance
from tests.golden.records import Record

LOGITS = {"rtol": 1e-4, "atol": 1e-5}
KINDS = ("FF", "SF", "FTW")


def keys_of(module):
    return [[key, list(value.shape), str(value.dtype).split(".")[-1]] for key, value in module.state_dict().items()]


def test_recipe(records, golden_tensor):
    checks = json.loads((records / "recipe_check.json").read_text())
    for name, expected in checks.items():
        prefix, _, key = name.partition(":")
        if prefix != "FF_mini_B":
            continue
        value = golden_tensor(key, tuple(expected["shape"])).double()
        assert value.sum().item() == pytest.approx(expected["sum"], abs=1e-5)
        assert value.flatten()[:4].tolist() == pytest.approx(expected["first"], rel=1e-6)


@pytest.mark.parametrize("size", ["mini", "full"])
def test_dvae_keys(records, settings, size):
    arguments = {"encoder": settings["mini_encoder"], "decoder": settings["mini_decoder"]} if size == "mini" else {}
    with torch.device("meta"):
        dvae = DVAE(**arguments)
    assert keys_of(dvae) == json.loads((records / f"keys_dvae_{size}.json").read_text())


@pytest.mark.parametrize("image", ["noise", "blocks", "randidx"])
def test_dvae(recipe, golden_dvae, image):
    expected = Record("gss/dvae_mini_B.npz")
    if image == "randidx":
        draw = np.abs(recipe.noise("input:dvae_indices", (1, 8, 8))).astype(np.float64)
        tokens = torch.from_numpy(np.floor(draw * 10000).astype(np.int64) % 8192)
    else:
        if image == "noise":
            pixels = 1 / (1 + np.exp(-2 * recipe.noise("input:dvae_image", (1, 3, 64, 64)).astype(np.float64)))
        else:
            cells = np.abs(recipe.noise("input:dvae_blocks", (1, 3, 8, 8))) > 0.6745
            pixels = np.kron(cells, np.ones((8, 8)))
        pixels = torch.from_numpy(pixels.astype(np.float32))
        logits = golden_dvae.logits(255 * pixels)
        expected.close(f"{image}_logits_sub", logits[:, ::64, ::2, ::2], **LOGITS)
        expected.close(f"{image}_logits_chan_mean", logits.mean((0, 2, 3)), **LOGITS)
        top = logits.topk(2, dim=1).values
        expected.close(f"{image}_top2_margin", top[:, 0] - top[:, 1], **LOGITS)
        tokens = golden_dvae.tokens(255 * pixels)
    assert (tokens.numpy() == expected[f"{image}_indices"]).all()
    expected.close(f"{image}_decoded", golden_dvae.decoder(tokens), **LOGITS)
    expected.close(f"{image}_unmapped", golden_dvae.decode(tokens) / 255, scale=255, atol=1e-3)
    one_hot = nn.functional.one_hot(tokens, 8192).movedim(-1, 1).float()
    expected.close(f"{image}_decoded", golden_dvae.decoder(one_hot), **LOGITS)


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "mseg"])
def test_palettes(records, recipe, name):
    published = json.loads((records / "palettes.json").read_text())[name]
    palette = load_palette(f"published_{name}")
    assert palette.tolist() == published
    facts = json.loads((records / "palette_and_posterior.json").read_text())[name]
    assert min_distance(palette[:-1]) == pytest.approx(facts["min_pair_distance"])

    expected, maskige = Record("gss/palette_roundtrip.npz"), Maskige(palette)
    labels = torch.from_numpy(expected[f"{name}_all_labels"][:, 0, :, :-1])  # the last one is out of range
    colors = maskige.encode(labels)
    assert (colors.numpy() == expected[f"{name}_all_colours"][..., :-1]).all()
    for keep, record in ((False, "noignore"), (True, "keepignore")):
        assert (maskige.decode(colors, keep)[0].numpy() == expected[f"{name}_decoded_{record}"][0, 0, :, :-1]).all()

    labels = torch.from_numpy(expected[f"{name}_rand_labels"][:, 0])
    colors = maskige.encode(labels)
    assert (colors.numpy() == expected[f"{name}_rand_segmap"]).all()
    back, inside = maskige.decode(colors, keep_ignore=True), labels < maskige.num_classes
    assert (back[inside] == labels[inside]).all() and (back[~inside] == maskige.num_classes).all()
    noise = 20 * torch.from_numpy(recipe.noise("input:palette_noise", (2, 3, 32, 48)))
    noisy = (colors + noise).clamp(0, 255)
    for keep, record in ((False, "noignore"), (True, "keepignore")):
        assert (maskige.decode(noisy, keep).numpy() == expected[f"{name}_noisy_decoded_{record}"][:, 0]).all()


@pytest.fixture(scope="module")
def batch(recipe):
    channels, strides = (16, 32, 64, 128), (4, 8, 16, 32)
    features = [
        torch.from_numpy(recipe.noise(f"input:feat{i}", (2, c, 64 // s, 64 // s)))
        for i, (c, s) in enumerate(zip(channels, strides, strict=True))
    ]
    cells = np.floor(np.abs(recipe.noise("input:gt", (2, 1, 16, 16))).astype(np.float64) * 1000) % 6
    labels = np.kron(cells, np.ones((4, 4)))
    labels[np.kron(recipe.noise("input:gt_ignore", (2, 1, 8, 8)) > 1.0, np.ones((8, 8))) > 0] = 255
    labels[:, :, :6, :10] = 255
    return features, torch.from_numpy(labels.astype(np.int64))


def samples_of(labels):
    return [SegDataSample(gt_sem_seg=PixelData(data=one)) for one in labels]


@pytest.mark.parametrize("kind", KINDS)
def test_head_keys(records, settings, kind):
    from mmseg.registry import MODELS

    config = {**settings["base"], "type": settings["classes"][kind], **(settings["FTW_extra"] if kind == "FTW" else {})}
    for size in ("mini", "full"):
        dvae = {"encoder": settings["mini_encoder"], "decoder": settings["mini_decoder"]} if size == "mini" else {}
        with torch.device("meta"):
            head = MODELS.build({**config, "d_vae": dvae})
        assert keys_of(head) == json.loads((records / f"keys_head_{kind}_{size}.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_inference(build_golden_head, batch, kind):
    expected, features = Record(f"gss/head_{kind}_mini_B.npz"), batch[0]
    head = build_golden_head(kind).eval()
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    stages = ["fusion_conv", "transformer_block", "swin_ln", "conv_before_seg", "conv_seg"]
    for name in stages + (["projection", "post_transformer_block", "post_swin_ln"] if kind == "FTW" else []):
        head.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        scores = head.predict(features, [{"img_shape": (128, 128)}], None)

    for name in stages[:-1]:
        expected.close(f"test_{name}", seen[name], **LOGITS)
    logits = seen["conv_seg"]
    expected.close("test_vq_logits_sub", logits[:, ::64, ::2, ::2], **LOGITS)
    expected.close("test_vq_logits_chan_mean", logits.mean((0, 2, 3)), **LOGITS)
    assert (logits.argmax(1).numpy() == expected["test_vq_indices"]).all()
    image = head.d_vae.decode(logits.argmax(1))
    assert scores.shape == (2, 6, 128, 128)
    assert (scores.argmax(1).numpy() == expected["test_pred"]).all()
    if kind == "FTW":
        expected.close("test_rec_segmap", image / 255, scale=255, atol=1e-3)
        expected.close("test_seg_logits", scores, **LOGITS)
        shape = expected.shape("test_projection")
        assert seen["projection"].shape == (2, 32, 128, 128) and shape == (2, 8, 32, 32)
        expected.close("test_projection", seen["projection"][:, ::4, ::4, ::4], **LOGITS)
    else:
        expected.close("test_rec_segmap255", image, atol=1e-3)
        assert ((scores == 0) | (scores == 1)).all()  # one-hot


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss(records, build_golden_head, batch, kind, mode):
    expected, (features, labels) = Record(f"gss/head_{kind}_mini_B.npz"), batch
    scalars = json.loads((records / "scalars.json").read_text())[f"head_{kind}_mini_B"]
    scalars = scalars["train_evalmode" if mode == "eval" else "train_trainmode_nodropout"]
    head = build_golden_head(kind)
    head.dropout = nn.Identity()
    nn.Module.train(head, mode == "train")  # as recorded: with the frozen part of FT-W running
    targets = []
    if kind != "FTW":
        original = head.token_targets
        head.token_targets = lambda *inputs: targets.append(original(*inputs)) or targets[0]
    assert (labels.numpy() == expected[f"{mode}_gt_in"]).all()
    losses = head.loss(features, samples_of(labels), None)

    assert (labels.numpy() == expected[f"{mode}_gt_in"]).all()  # unchanged, unlike the published code's
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(scalars["losses"], rel=1e-4, abs=1e-8)
    if targets:
        tokens, resized = targets[0]
        ignored = expected[f"{mode}_masked_indice_label"][:, 0] == 8192
        assert ignored.sum() == scalars["n_ignored_tokens"]
        assert (tokens.numpy() == expected[f"{mode}_masked_indice_label"][:, 0]).all()
        assert (resized.numpy() == expected[f"{mode}_pixel_label"][:, 0]).all()
    sum(value for name, value in losses.items() if "loss" in name).backward()
    gradients = {name: p.grad.norm().item() for name, p in head.named_parameters() if p.grad is not None}
    recorded = {name: value for name, value in scalars["grad_l2"].items() if value is not None}
    assert gradients == pytest.approx(recorded, rel=1e-3, abs=1e-6)
    for name, (total, norm) in scalars.get("bn_stats_after", {}).items():
        value = head.state_dict()[name].double()
        assert (value.sum().item(), value.norm().item()) == pytest.approx((total, norm), rel=1e-4)

"""The model in the box: small enough to be kept here, and it paints what its masks say."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cldm.build import create_model
from cldm.synthesis.folder import read_items
from cldm.synthesis.options import SynthesisOptions
from cldm.synthesis.run import synthesize
from common.images import read_image, read_mask
from ldm.checkpoint import read_state_dict
from tests.conftest import ROOT

BOX = ROOT / "demo" / "mbrsc"
MB = 1_000_000


def size_of(*patterns):
    return sum(path.stat().st_size for pattern in patterns for path in BOX.glob(pattern))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    out = tmp_path_factory.mktemp("box") / "data"
    cut = [sys.executable, ROOT / "demo" / "cut_crops.py", "--data-root", BOX, "--out", out, "--side", "128"]
    subprocess.run(cut, check=True)
    return out


def test_it_is_small_and_half_precise():
    assert size_of("model.safetensors") < 40 * MB and size_of("segmentor.pth") < 5 * MB
    assert size_of("img_*/*", "label_*/*", "ref_img/*") < 4 * MB
    state = read_state_dict(BOX / "model.safetensors")
    assert sum(value.numel() for value in state.values()) < 30e6


def test_tiles_keep_pixels_and_masks(tiles):
    for line in (tiles / "inference_set_items.json").read_text().splitlines():
        item = json.loads(line)
        name, _, number = item["source"].removesuffix(".png").rpartition("_")
        top, left = (128 * part for part in divmod(int(number), 2))
        window = np.s_[top : top + 128, left : left + 128]
        assert np.array_equal(read_mask(tiles / item["source"]), read_mask(BOX / f"{name}.png")[window])
        whole = BOX / name.replace("label_train", "img_train")
        assert np.array_equal(read_image(tiles / item["target"]), read_image(whole.with_suffix(".jpg"))[window])
        assert (tiles / item["ref_image"]).is_file() and item["prompt"].startswith("a satellite image of ")


def test_the_segmentor_finds_in_a_painted_image_the_mask_it_was_painted_from(tiles, tmp_path):
    """Of four images, at eight steps: most pixels of each, and more than in the others' masks."""
    from segmentation.inference import open_segmentor  # takes seconds

    lines = (tiles / "inference_set_items.json").read_text().splitlines(keepends=True)
    (tiles / "four.json").write_text("".join(lines[::20]))
    options = SynthesisOptions(
        config=BOX / "model.yaml",
        ckpt=BOX / "model.safetensors",
        data_root=tiles,
        items=tiles / "four.json",
        outdir=tmp_path,
        sampler="dpmsolver++",
        steps=8,
        scale=2.0,
        mask_scale=2.0,
        num_workers=0,
        gpus="cpu",
    )
    model = create_model(options.config, options.ckpt)
    items = read_items(options, model)
    pairs = []
    for item, (name, image) in zip(items.items, synthesize(model, items, options), strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        pairs.append((tmp_path / f"{name}.png", item.mask))
    segmentor = open_segmentor(str(BOX / "segmentor.py"), str(BOX / "segmentor.pth"), device="cpu")
    found = list(segmentor.predictions(pairs, num_workers=0))
    agrees = np.array([[(classes == mask)[mask < 5].mean() for _, mask in found] for classes, _ in found])
    assert agrees.diagonal().min() > 0.5 and (agrees.diagonal() > agrees.mean(1)).all(), agrees.round(2)

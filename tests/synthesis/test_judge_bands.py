"""A segmentor of stated bands guides and chooses among images of a model of stated bands."""

import json

import numpy as np
import pytest
import torch
import yaml

from cldm.build import create_model
from common.band_conversion import conversion
from common.bands import Bands
from common.errors import InputError
from ldm.checkpoint import save_state_dict
from segmentation.inference import segment
from segmentation.judge import open_judge
from tests.conftest import SMALL
from tests.segmentation import pixel_backbone
from tests.training.test_bands import land  # noqa: F401 (a fixture)

pytest.importorskip("rasterio")


def test_numbers_of_one_model_as_another_reads_them():
    made = Bands(ranges=[[0, 1000], [0, 2000], [100, 300]], take=[4, 2, 7], dtype="uint16")
    read = Bands(ranges=[[0, 4000], [100, 300]], take=[2, 7], dtype="uint16")
    how = conversion(made, read, "it")
    assert how.index == (1, 2) and how.factor == (0.5, 1.0) and how.shift == (0.0, 0.0) and not how.same
    assert conversion(made, made, "it").same and conversion(None, None, "it").same
    assert conversion(None, Bands(ranges=[[0, 255]] * 3), "it").same
    for one, other, says in (
        (made, None, "reads three bands of 8 bits, the model makes uint16"),
        (made, Bands(ranges=[[0, 1]] * 4), "reads 4 bands, the model makes 3"),
        (made, Bands(ranges=[[0, 1]], take=[3]), "reads band 3, which the model does not make; it makes 4, 2, 7"),
        (None, Bands(ranges=[[0, 1]] * 3, per_image=[1, 99]), "scales each image by itself"),
    ):
        with pytest.raises(InputError, match=says):
            conversion(one, other, "it")


@pytest.fixture(scope="module")
def model(land, tmp_path_factory):  # noqa: F811
    """Configuration and weights of a model of four bands that has learned nothing, and a segmentor's of three of them.

    The segmentor takes the nearest of some mixes of bands 4, 2 and 1, of another range than the model's.
    """
    folder, count = tmp_path_factory.mktemp("model"), 3
    table = str(land / "classes.json")
    bands = {"ranges": [[200, 3100]] * 4, "dtype": "uint16", "nodata": 0.0}
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    params = {"factor": 4, "deviations": [[0.5] * 4] * 2, "basis": basis.tolist()}
    over = {"first_stage_config": {"target": "ldm.models.autoencoder.SpaceToDepth", "params": params}}
    config = yaml.safe_load(SMALL.read_text())
    channels = 4 * 3
    config["model"]["params"] |= {**over, "bands": bands, "classes": table, "channels": channels}
    for part in ("control_stage_config", "ssl_stage_config", "unet_config"):
        config["model"]["params"][part]["params"]["in_channels"] = channels
    config["model"]["params"]["unet_config"]["params"]["out_channels"] = channels
    config["model"]["params"]["ssl_stage_config"]["params"]["hint_channels"] = channels
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    made = create_model(folder / "model.yaml")
    save_state_dict(made.state_dict(), folder / "model.safetensors")

    stated = {"ranges": [[0, 4000], [100, 3100], [0, 3100]], "take": [4, 2, 1], "dtype": "uint16", "nodata": 0}
    written = pixel_backbone.write_config(folder / "config.py", count, table, str(land))
    text = written.read_text().replace('type="LoadImageFromFile"', f'type="ReadImage", bands={stated}')
    written.write_text(text)
    mean, std = torch.tensor([120.0, 110, 100]), torch.tensor([60.0, 55, 50])
    colors = (torch.rand(count, 3, generator=torch.Generator().manual_seed(3)) * 255 - mean) / std
    state = {"conv_seg.weight": 4 * colors[..., None, None], "conv_seg.bias": -2 * colors.square().sum(1)}
    torch.save({"state_dict": {f"decode_head.{name}": value for name, value in state.items()}}, folder / "seg.pth")
    return folder / "model.yaml", folder / "model.safetensors", (written, folder / "seg.pth")


def test_guided_by_a_segmentor_of_some_bands(model, land, tmp_path, cli):  # noqa: F811
    config, weights, segmentor = model
    data = ["--data-root", land, "--txt-file", land / "list.json", "--gpus", "cpu", "--num-workers", 0, "--steps", 3]
    words = ["--config", config, "--ckpt", weights, *data]
    guided = ["--rectify", *segmentor, "--rectify-steps", 3, "--rectify-scale", 0.8]
    chosen = ["--judge", *segmentor, "--candidates", 2, "--retry", 1, "--retry-below", 0.99]
    cli("inference", *words, "--outdir", tmp_path / "plain", "--judge", *segmentor, "--candidates", 2)
    cli("inference", *words, "--outdir", tmp_path / "guided", *guided, *chosen)
    said = {
        name: [json.loads(line) for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        for name in ("plain", "guided")
    }
    first = {name: np.mean([record["scores"][0] for record in records]) for name, records in said.items()}
    assert first["guided"] > first["plain"] + 0.1 and {len(record["scores"]) for record in said["guided"]} == {3}
    # what it said of tensors is what it finds in the files
    judge = open_judge(*segmentor)
    files = [tmp_path / "guided" / f"{record['name']}.tif" for record in said["guided"]]
    for found, record in zip(
        segment(judge.segmentor, [(p, None) for p in files], [range(4)], 0), said["guided"], strict=True
    ):
        labels = judge.labels(record["mask"], found.classes.shape)
        known, iou = labels != 255, []
        for one in np.unique(labels[known]):
            hit = ((found.classes == one) & (labels == one)).sum()
            iou.append(hit / (((found.classes == one) & known) | (labels == one)).sum())
        assert np.mean(iou) == pytest.approx(max(record["scores"]), abs=0.01)

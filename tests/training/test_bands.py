"""Models of many bands by the command line: trained on GeoTIFFs, painting them; what has no data has no loss."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml

from common.bands import read_picture
from common.rasters import place_of, read_raster, write_geotiff
from ldm.checkpoint import read_bands
from ldm.models.diffusion import known_latents
from tests.conftest import ROOT, SMALL
from tests.data.test_geotiff import place

rasterio = pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def land(tmp_path_factory):
    """Four GeoTIFFs of 4 bands in 16 bits, each with a corner without data, and their masks."""
    root, rng, lines = tmp_path_factory.mktemp("land"), np.random.default_rng(0), []
    colors = rng.integers(200, 3000, (3, 4))
    for folder in ("img_train", "label_train"):
        (root / folder).mkdir()
    for number in range(4):
        ids = rng.integers(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        numbers = (colors[ids] + rng.integers(0, 99, (32, 32, 4))).astype(np.uint16)
        numbers[:8, :8] = 0
        a, b, c, d, e, f = place().transform
        here = dataclasses.replace(place(), size=(32, 32), transform=(a, b, c + 960 * number, d, e, f))
        write_geotiff(root / f"img_train/a{number}.tif", numbers, here, nodata=0)
        write_geotiff(root / f"label_train/a{number}.tif", ids[..., None], here, nodata=255, ids=True)
        line = {"source": f"label_train/a{number}.tif", "target": f"img_train/a{number}.tif", "prompt": "p"}
        lines.append({**line, "ref_image": f"img_train/a{(number + 1) % 4}.tif"})
    (root / "list.json").write_text("\n".join(map(json.dumps, lines)))
    table = {"classes": ["a", "b", "c"], "palette": [[0, 0, 0], [255, 0, 0], [0, 0, 255]]}
    (root / "classes.json").write_text(json.dumps(table))
    return root


def test_from_stats_to_a_painted_geotiff(land, tmp_path, cli):
    bands, run, out = tmp_path / "bands.yaml", tmp_path / "run", tmp_path / "out"
    data = ["--data-root", land, "--gpus", "cpu"]
    cli("stats", "--items", land / "list.json", "--data-root", land, "--rgb", 3, 2, 1, "--factor", 4, "--out", bands)
    lists = ["--train-txt-file", land / "list.json", "--val-txt-file", land / "list.json"]
    settings = [f"model.params.classes={land}/classes.json", "lightning.trainer.max_steps=2"]
    model = ["--config-model", SMALL, "--bands", bands, "-n", "run", "-l", tmp_path]
    cli("train", *model, *data, *lists, *settings, "lightning.callbacks.image_logger.params.batch_frequency=2")
    stated = yaml.safe_load(bands.read_text())["model"]["params"]["bands"]
    assert read_bands(run / "checkpoints" / "last.ckpt").model_dump(exclude_defaults=True) == stated

    weights = ["--config", run / "config.yaml", "--ckpt", run / "checkpoints" / "last.ckpt", "--num-workers", 0]
    paint = [*weights, *data, "--outdir", out, "--txt-file", land / "list.json", "--steps", 2]
    cli("inference", *paint)
    assert sorted(path.name for path in out.glob("*.*") if path.name[0] != ".")[:2] == [
        "a0_seed_42.tif",
        "a1_seed_42.tif",
    ]
    with rasterio.open(out / "a1_seed_42.tif") as made, rasterio.open(land / "img_train" / "a1.tif") as real:
        assert (made.crs, made.transform, made.shape) == (real.crs, real.transform, real.shape)
        assert (made.dtypes, made.nodata, made.count) == (real.dtypes, real.nodata, 4)
        assert made.profile["tiled"] and made.overviews(1) and (made.dataset_mask() == 255).all()
        low, high = np.array(stated["ranges"]).T
        numbers = made.read().reshape(4, -1).T
        assert (numbers >= np.floor(low)).all() and (numbers <= np.ceil(high)).all()
    record = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert (record["format"], record["bands"]) == ("tif", stated)
    assert "0 to make" in cli(
        "inference", *weights, *data, "--outdir", out, "--txt-file", land / "list.json", "--steps", 2
    )
    show = ["--samples", out, "--data-root", land, "--items", land / "list.json", "--classes", land / "classes.json"]
    cli("contact_sheet", *show, "--rgb", 4, 3, 2, "--out", tmp_path / "sheet.png")

    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"model": {"params": {"bands": {"ranges": [[0, 1]] * 3}}}}))
    refused = cli.refused(
        "inference", *weights, *data, "--outdir", out, "--txt-file", land / "list.json", "--bands", other
    )
    assert "reads 4 bands, bands states 3" in refused


def test_what_has_no_data_gives_no_gradient(golden_model, recipe):
    model = copy.deepcopy(golden_model)
    noise = torch.from_numpy(recipe.noise("x", (1, 4, 8, 8)))
    prediction = torch.zeros_like(noise).requires_grad_()
    model.apply_model = lambda *_: prediction
    valid = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    valid[..., :9, :3] = False  # one latent pixel whole, and a row of the next one
    known = known_latents(valid, 8)
    assert known[0, 0].sum() == 62 and known[0, 0, :2, 0].tolist() == [0, 0]
    loss = model.p_losses(noise, {}, torch.tensor([500]), noise, known)
    loss.sum().backward()
    assert ((prediction.grad != 0).any(1, keepdim=True) == (known > 0)).all()
    assert loss.item() == pytest.approx((noise**2)[known.expand_as(noise) > 0].mean().item(), rel=1e-5)


def test_a_first_stage_learns_nothing_where_there_are_no_data():
    from omegaconf import OmegaConf

    from ldm.first_stage.schema import check_config
    from ldm.first_stage.training import FirstStageTraining

    values = OmegaConf.to_container(OmegaConf.load(ROOT / "tests" / "first_stage" / "small.yaml"))
    training = FirstStageTraining(check_config(values, str))
    training.log = lambda *_, **__: None
    image = torch.rand(2, 3, 16, 16)
    batch = {"image": image, "seed": torch.tensor([1, 2]), "name": ["a", "b"]}
    assert training.training_step({**batch, "valid": torch.ones(2, 1, 16, 16, dtype=torch.bool)}, 0) > 0
    assert training.training_step({**batch, "valid": torch.zeros(2, 1, 16, 16, dtype=torch.bool)}, 0) == 0


@pytest.mark.parametrize(("ranges", "dtype", "left"), [([0, 3000], "uint16", 0), ([0, 255], "uint8", 1)])
def test_three_bands_that_are_no_bytes_are_not_taken_for_colors_of_pictures(ranges, dtype, left):
    pytest.importorskip("mmseg")
    from common.bands import Bands
    from segmentation.bands import set_bands
    from segmentation.config import load_config

    config = load_config(ROOT / "configs" / "mmseg" / "tiny.py")
    set_bands(config, Bands(ranges=[ranges] * 3, dtype=dtype))
    kinds = [step["type"] for step in config.train_dataloader.dataset.pipeline]
    assert kinds.count("PhotoMetricDistortion") == left and kinds.count("BandDistortion") == 1 - left
    assert len(config.model.data_preprocessor["mean"]) == 3


def test_a_segmentor_reads_bands_and_ignores_what_has_no_data(land, tmp_path):
    pytest.importorskip("mmseg")
    from mmseg.registry import DATASETS

    from common.bands import Bands
    from segmentation.bands import bands_of_config, set_bands
    from segmentation.config import load_config

    config = load_config(ROOT / "configs" / "mmseg" / "tiny.py")
    bands = Bands(ranges=[[0, 3000]] * 4, dtype="uint16", nodata=0)
    set_bands(config, bands)
    assert config.model.backbone.in_channels == 4 and not config.model.data_preprocessor.bgr_to_rgb
    assert bands_of_config(config) == bands
    prefix = {"img_path": "img_train", "seg_map_path": "label_train"}
    entry = {**config.train_dataloader.dataset, "classes": str(land / "classes.json"), "data_root": str(land)}
    item = DATASETS.build({**entry, "data_prefix": prefix})[0]
    assert item["inputs"].shape[0] == 4
    steps = config.test_dataloader.dataset.pipeline[:2]
    read = DATASETS.build({**entry, "data_prefix": prefix, "pipeline": steps})[0]
    assert (read["gt_seg_map"][:8, :8] == 255).all() and read["gt_seg_map"][8:].max() < 3
    stored = read_raster(land / "img_train" / "a0.tif").values
    assert np.allclose(read["img"][9:] / 255 * 3000, stored[9:], atol=1)
    assert read_picture(land / "img_train" / "a0.tif", bands).shape == (32, 32, 3)
    assert place_of(land / "label_train" / "a0.tif").code == "EPSG:32614"

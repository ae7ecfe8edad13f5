"""GeoTIFFs of four bands from a segmentor's scores to a comparison: every command reads them by what is stated."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from common.bands import Bands, Parts, of_file, read_pixels
from common.errors import InputError
from common.images import Labels, read_mask, read_mask_in_strips
from common.rasters import read_raster, write_geotiff
from evaluation import inception
from evaluation import runs as comparison_runs
from evaluation.copies import nearest, thumbnail
from scripts import segmentor
from segmentation import prediction, windows
from segmentation.augmentation import ColorTransfer, FourierStyle, PasteRareClasses, transfer_color
from segmentation.bands import BandDistortion
from tests.data.test_geotiff import place
from tests.segmentation import pixel_backbone
from tests.segmentation.chain import compare_options

pytest.importorskip("rasterio")
STATED = {"ranges": [[0, 4000]] * 4, "dtype": "uint16", "nodata": 0}


@pytest.fixture
def land(tmp_path):
    """Images of 4 bands in 16 bits with a corner without data, masks, painted images, and a segmentor's config."""
    rng = np.random.default_rng(0)
    colors = rng.integers(500, 1500, (3, 4))

    def write(name, folder, mask_folder):
        ids = rng.integers(0, 3, (6, 6)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        numbers = (colors[ids] + rng.integers(0, 2500, (24, 24, 4))).astype(np.uint16)
        numbers[:4, :4] = 0
        for kind, values, nodata in ((folder, numbers, 0), (mask_folder, ids[..., None], 255)):
            (tmp_path / kind).mkdir(parents=True, exist_ok=True)
            write_geotiff(tmp_path / kind / f"{name}.tif", values, place(size=(24, 24)), nodata=nodata)

    for index in range(3):
        write(f"r{index}", "img_train", "label_train")
        write(f"r{index}", "img_test", "label_test")
    for folder, masks in (("syn", "syn_label"), ("synth/resampled_img", "synth/resampled_label"), ("refs", "unused")):
        write("r0_seed_1", folder, masks)
        write("r1_seed_1", folder, masks)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    bands = tmp_path / "bands.yaml"
    bands.write_text(yaml.safe_dump({"model": {"params": {"bands": STATED}}}))
    table = str(tmp_path / "classes.json")
    config = pixel_backbone.write_config(tmp_path / "config.py", 3, table, str(tmp_path), bands=4)
    return SimpleNamespace(root=tmp_path, bands=bands, table=table, config=config)


def test_evaluation_and_comparison(land, cli, monkeypatch):
    monkeypatch.setattr(comparison_runs, "segmentor", lambda _children, line, _log: segmentor.main(list(line)))
    root = land.root
    more = ["--bands", land.bands, "--seeds", 1, "--arms", "joint+fda+color_transfer+copy_paste", "self_training"]
    gallery = ["--syn-img-path", root / "syn", "--mask-path", root / "syn_label", "--rgb", 4, 3, 2]
    cli("compare", *compare_options(land, *more, "--sure", 0, "--references", root / "refs", *gallery))
    report = json.loads((root / "out/comparison.json").read_text())
    assert set(report["results"]["test"]["arms"]) == {"joint+fda+color_transfer+copy_paste", "self_training"}
    assert (root / "out/comparison.html").read_text().count("data:image/") == 2 + 2 + 1
    trained = root / "out" / "runs" / "baseline_seed_0"
    weights, config = trained / "iter_2.pth", next(trained.glob("*.py"))

    def features(path):
        network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        network.num_features = 12
        return network

    monkeypatch.setattr(inception, "inception_features", features)
    folders = {"real-img-path": "img_test", "real-label-path": "label_test", "train-img-path": "img_train"}
    folders |= {"syn-img-path": "syn", "syn-mask-path": "syn_label", "out-dir": "eval"}
    given = [word for name, folder in folders.items() for word in (f"--{name}", root / folder)]
    words = [config, weights, *given, "--num-workers", 0, "--inception-weights", "any"]
    assert "look at three of the 4 bands; say which by --rgb" in cli.refused("evaluate_samples", *words)
    assert "(of bands 4, 3, 1 as RGB)" in cli("evaluate_samples", *words, "--rgb", 4, 3, 1)
    found = json.loads((root / "eval/evaluation.json").read_text())
    assert found["bands of FID and KID"] == [4, 3, 1] and found["FID"] > 0 and found["synthesized"]["mIoU"] > 0

    lines = [{"source": f"label_train/r{i}.tif", "target": f"img_train/r{i}.tif", "prompt": ""} for i in range(3)]
    (root / "items.json").write_text("\n".join(map(json.dumps, lines)))
    allotted = ["--data-root", root, "--masks", root / "items.json", "--references", root / "refs"]
    allotted += ["--classes", land.table, "--total", 6, "--num-workers", 0, "--out", root / "allotted.json"]
    assert "16 bits a channel" in cli.refused("allot", *allotted)
    cli("allot", *allotted, "--segmentor", config, weights, "--not-among", root / "img_test")
    told = json.loads((root / "allotted_report.json").read_text())["masks"]["label_train/r0.tif"]["references"]
    assert all(set(one) == {"images", "mix", "style"} for one in told.values())


def test_a_single_band_keeps_its_axis_behind_a_resize():
    """OpenCV drops it."""
    for shape in ((6, 5), (6, 5, 1)):
        made = BandDistortion().transform({"img": np.full(shape, 100, np.uint8)})["img"]
        assert made.shape == (6, 5, 1) and np.ptp(made) < 1e-3


def test_thumbnails_have_all_bands(land):
    bands = Bands(**STATED)
    files = sorted((land.root / "img_train").iterdir())
    small = np.stack([thumbnail(path, bands) for path in files])
    assert small.shape == (3, 32, 32, 4) and 0 <= small.min() < small.max() <= 1
    distance, index = nearest(small[1:2, :, ::-1], small)
    assert distance[0] < 1e-6 and index[0] == 1


def test_free_tricks_of_bands(land):
    """Color transfer reaches mean and spread of each band, of pixels with data alone; donors' gaps are not pasted."""
    bands, folder = Bands(**STATED), land.root / "img_train"
    one, other = (read_pixels(folder / f"r{index}.tif", bands) for index in (0, 1))
    wanted = other.values[other.valid]
    made = transfer_color(one.values, wanted[None], one.valid)
    assert made.dtype == np.float32 and np.allclose(made[one.valid].mean(0), wanted.mean(0), atol=1)
    stated, results = bands.model_dump(exclude_defaults=True), {"img": one.values, "valid": one.valid}
    for step in (ColorTransfer, FourierStyle):
        changed = step(str(folder), prob=1, bands=stated).transform(dict(results))["img"]
        assert changed.shape == one.values.shape and changed.dtype == np.float32 and changed.max() <= 255
    paste = PasteRareClasses([0, 1, 2], prob=1, bands=stated)
    paste.take_pairs([(folder / "r1.tif", land.root / "label_train" / "r1.tif")], Labels(3))
    random.seed(0)
    given = {"img": np.full_like(one.values, 7), "gt_seg_map": np.full((24, 24), 2, np.uint8)}
    shown = paste.transform(given)["img"]
    assert ((shown == 7).all(-1) == ~other.valid).all() or ((shown == 7).all(-1) == ~other.valid[:, ::-1]).all()


def test_painted_files_of_some_bands_are_read_in_their_own_order(land, tmp_path):
    """A model of bands 4, 2, 1 paints three; whoever reads bands 4, 2, 1 of the real files finds the same in them."""
    stated = {"ranges": [[0, 4000]] * 3, "dtype": "uint16", "nodata": 0}
    bands = Bands(**stated, take=[4, 2, 1])
    real = land.root / "img_train" / "r0.tif"
    pixels = read_pixels(real, bands)
    write_geotiff(tmp_path / "painted.tif", bands.stored(pixels.values / 127.5 - 1), None, **of_file(bands))
    again = read_pixels(tmp_path / "painted.tif", bands)
    assert np.abs(again.values - pixels.values)[pixels.valid].max() < 0.1
    swapped = read_pixels(tmp_path / "painted.tif", Bands(**stated, take=[1, 2, 4])).values
    assert (swapped == again.values[..., ::-1]).all()
    with pytest.raises(InputError, match="has bands 4, 2, 1, the model reads bands 3"):
        read_pixels(tmp_path / "painted.tif", Bands(ranges=[[0, 1]], take=[3]))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is a picture of 8 bits, the model reads uint16"):
        read_pixels(tmp_path / "a.png", bands)


@pytest.fixture
def words(land):
    """Those of a prediction by a segmentor that looks at single pixels."""
    generator, weights = torch.Generator().manual_seed(0), land.root / "weights.pth"
    state = {"conv_seg.weight": torch.randn(3, 4, 1, 1, generator=generator), "conv_seg.bias": torch.zeros(3)}
    torch.save({"state_dict": {f"decode_head.{name}": value for name, value in state.items()}}, weights)
    return ["predict", land.config, "--load-from", weights, "--bands", land.bands, "--num-workers", 0]


def test_windows_find_what_the_whole_image_shows(land, words, cli):
    """By windows, in strips, and where there are no data."""
    root = land.root
    for name, more in (("whole", []), ("windows", ["--window", 10, "--batch-size", 2])):
        cli("segmentor", *words, "--images", root / "img_test", "--out", root / name, *more)
    for path in sorted((root / "whole" / "masks").iterdir()):
        whole, found = (read_raster(root / name / "masks" / path.name) for name in ("whole", "windows"))
        assert (whole.values == found.values).mean() > 0.99 and (found.values[:4, :4] == 255).all()
        assert found.place == whole.place and len(np.unique(found.values)) == 4
        for mask in (whole, found):  # as programs show it: classes in their colors, what is to be ignored not at all
            assert mask.nodata == 255 and mask.palette.any(1)[:3].all() and not mask.palette[3:].any()
            assert not mask.valid[:4, :4].any()
    assert "2 of 3 images" not in cli(
        "segmentor", *words, "--images", root / "img_test", "--out", root / "windows", *more
    )
    line = cli.refused("segmentor", *words, "--images", root / "img_test", "--out", root / "no", *more, "--overlay")
    assert "--window and --overlay: give one of them" in line
    other = ["--images", root / "img_test", "--out", root / "windows", "--window", 12]
    assert "predictions of another window and overlap" in cli.refused("segmentor", *words, *other)


def test_a_stopped_prediction_goes_on_within_its_image(land, words, cli, monkeypatch):
    """Stopped twice between rows of windows, and once while its mask was written."""
    root, masks, predict, calls = land.root, land.root / "stopped" / "masks", windows.Segmentor.test_step, []
    words += ["--window", 10, "--batch-size", 2, "--images", root / "img_test" / "r0.tif", "--out"]
    cli("segmentor", *words, root / "unbroken")

    def counted(self, data):
        calls.append(data)
        if len(calls) in (6, 9):  # a row has two batches
            raise KeyboardInterrupt
        return predict(self, data)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(windows.Segmentor, "test_step", counted)
    for _ in range(2):
        cli("segmentor", *words, root / "stopped", code=130)
        assert [path.name for path in masks.iterdir()] == [".r0.tif.work"]
    with monkeypatch.context() as broken:
        broken.setattr(windows, "atomic_path", killed)
        cli("segmentor", *words, root / "stopped", code=130)
    line = cli.refused("segmentor", *words, root / "stopped", "--overlap", 0)
    assert "predictions of another window and overlap" in line
    cli("segmentor", *words, root / "stopped")
    assert [path.name for path in masks.iterdir()] == ["r0.tif"]
    assert (masks / "r0.tif").read_bytes() == (root / "unbroken" / "masks" / "r0.tif").read_bytes()
    assert len(calls) == 2 * 4 + 3  # what was stopped was done again, and once the batch before it


def test_an_image_that_changed_is_begun_anew(land, words, cli, monkeypatch):
    image, other = (land.root / "img_test" / f"{name}.tif" for name in ("r0", "r1"))
    found, paths = windows.predicted_strips, prediction.Outputs.paths

    def one_row(*words):
        yield next(found(*words))
        raise KeyboardInterrupt

    def pictures(self, name, path):
        return {kind: path.with_suffix(".png") for kind, path in paths(self, name, path).items()}

    monkeypatch.setattr(prediction.Outputs, "paths", pictures)
    words += ["--window", 10, "--images", image, "--out"]
    with monkeypatch.context() as broken:
        broken.setattr(windows, "predicted_strips", one_row)
        cli("segmentor", *words, land.root / "out", code=130)
    image.write_bytes(other.read_bytes())
    masks = []
    for folder in ("out", "unbroken"):
        cli("segmentor", *words, land.root / folder)
        masks.append((land.root / folder / "masks" / "r0.png").read_bytes())
    assert masks[0] == masks[1]


@pytest.mark.parametrize("rows", [3, 24])
def test_a_mask_in_strips_is_the_mask(land, rows):
    labels = Labels(3)
    for path in (land.root / "label_train" / "r0.tif", land.root / "gray.png"):
        if path.suffix == ".png":
            Image.fromarray(read_mask(land.root / "label_train" / "r0.tif")).save(path)
        strips = list(read_mask_in_strips(path, labels, rows))
        assert [top for top, _ in strips] == list(range(0, 24, rows))
        assert (np.concatenate([ids for _, ids in strips]) == labels.file_ids(path)).all()


def test_parts_are_parts_of_the_image(land, tmp_path):
    rgb = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    files = [(land.root / "img_train" / "r0.tif", Bands(**STATED))]
    for name in ("a.tif", "a.png"):
        Image.fromarray(rgb).save(tmp_path / name)
        files += [(tmp_path / name, None), (tmp_path / name, Bands(ranges=[[0, 255]] * 3))]
    Image.fromarray(rgb[..., 0]).save(tmp_path / "gray.tif")
    files += [(tmp_path / "gray.tif", None), (tmp_path / "gray.tif", Bands(ranges=[[0, 255]]))]
    for path, bands in files:
        whole, parts = read_pixels(path, bands), Parts(path, bands)
        part = parts.read((2, 5, 9, 11))
        assert parts.size == whole.valid.shape and (part.valid == whole.valid[2:11, 5:16]).all()
        assert part.values.dtype == whole.values.dtype and (part.values == whole.values[2:11, 5:16]).all(), path

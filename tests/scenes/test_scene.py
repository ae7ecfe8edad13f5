"""Scenes by the command: one window is a synthesis, batches and stops change nothing, and nothing is left behind."""

import json
import os
import shutil
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.build import create_model
from cldm.scenes import run, sampling
from cldm.scenes.conditions import WindowConditions, around
from cldm.scenes.options import SceneOptions
from cldm.scenes.writing import write_png
from common.command import read_options
from common.files import only_writer_of
from tests.conftest import SMALL, without_a_class_table
from tests.scenes.conftest import Largest, pixels
from tests.synthesis.conftest import close


def paint(words):
    return run.paint_scene(read_options(SceneOptions, "", words))


@pytest.fixture(scope="module")
def painted(painting, tmp_path_factory):
    """The scene, in batches of 8; its path."""
    out = tmp_path_factory.mktemp("painted") / "scene.png"
    assert paint(painting(out))
    return out


def test_a_scene_of_one_window_is_the_image_of_a_synthesis(cli, painting, scenes, tmp_path):
    mask, reference = scenes / "label_train" / "train_0001.png", sorted((scenes / "img_train").iterdir())[0]
    item = {"source": str(mask.relative_to(scenes)), "prompt": "", "ref_image": str(reference.relative_to(scenes))}
    (tmp_path / "list.json").write_text(json.dumps(item))
    words, out = painting(tmp_path / "scene.png", mask=mask), tmp_path / "made"
    assert paint(words)
    both = [*words[words.index("--config") : words.index("--window")], "--steps", "2", "--scale", "2", "--seed", "5"]
    lists = ["--data-root", scenes, "--txt-file", tmp_path / "list.json", "--outdir", out, "--num-workers", "0"]
    cli("inference", *both, *lists, "--gpus", "cpu", "--format", "png")
    np.testing.assert_array_equal(pixels(tmp_path / "scene.png"), pixels(out / "train_0001_seed_5.png"))
    record, sample = (json.loads(path.read_text()) for path in (tmp_path / "scene.png.json", out / "samples.jsonl"))
    assert (record.pop("window"), record.pop("overlap")) == ([32, 32], 0.5)
    assert record == {key: value for key, value in sample.items() if key in record} and len(record) > 25


def test_batches_change_nothing_and_nothing_is_left(cli, painting, painted, tmp_path):
    out = tmp_path / "ones.png"
    paint(painting(out, "--batch-size", "1"))
    assert pixels(painted).shape == (96, 64, 3) and close(pixels(painted), pixels(out))
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"} == {"ones.png", "ones.png.json"}
    assert "made as asked" in cli("scene", *painting(out))
    assert "was made with scale 2" in cli.refused("scene", *painting(out, "--scale", "3"))


class After:
    """True from the n-th time on that it is asked."""

    def __init__(self, n):
        self.left = n

    def __bool__(self):
        self.left -= 1
        return self.left <= 0


def test_a_stopped_scene_goes_on_bit_for_bit(cli, painting, painted, tmp_path, monkeypatch):
    out, predict, calls = tmp_path / "stopped.png", sampling.Windows.predict, []

    def signalled(self, *words):
        calls.append(words)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, *words)

    def ends(*_):
        raise SystemExit(143)

    monkeypatch.setattr(sampling.Windows, "predict", signalled)
    before = signal.signal(signal.SIGTERM, ends)
    try:
        assert "stopped; start again to go on" in cli("scene", *painting(out), code=143)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "under way was made with steps 2, not 3" in cli.refused("scene", *painting(out, "--steps", "3"))
    asked = After(5)  # in the second step
    monkeypatch.setattr(run, "signals_held", lambda: nullcontext(asked))
    assert not paint(painting(out))
    asked.left = 6  # in the decoding
    assert not paint(painting(out))
    asked.left = 1000
    assert paint(painting(out))
    np.testing.assert_array_equal(pixels(painted), pixels(out))
    assert len(calls) == 2 * 5  # no row was predicted twice, since all stops came between rows


def test_two_commands_of_one_scene(cli, painting, painted, tmp_path, monkeypatch):
    """The other's work is never taken away, and what it did since the first look is not done again."""
    out, look = tmp_path / "scene.png", run.conditions
    for path in (painted, painted.with_name("scene.png.json")):
        shutil.copy(path, tmp_path)
    work = tmp_path / ".scene.png.work"
    work.mkdir()
    with only_writer_of(out, "--out"):  # makes it again
        assert "is writing there" in cli.refused("scene", *painting(out)) and work.is_dir()
    assert not paint(painting(out)) and not work.exists()
    made, record = out.read_bytes(), (tmp_path / "scene.png.json").read_bytes()
    out.unlink()

    def meanwhile(scene):
        (tmp_path / "scene.png.json").write_bytes(record)
        out.write_bytes(made)
        return look(scene)

    monkeypatch.setattr(run, "conditions", meanwhile)
    assert not paint(painting(out)) and out.read_bytes() == made


def test_a_geotiff_lies_where_its_mask_does(cli, painting, mask, tmp_path):
    """Of a mask whose sides are no multiples of what the model takes; guided by all three conditions."""
    rasterio = pytest.importorskip("rasterio")
    ids = np.array(Image.open(mask))[:60, :43]
    place = {"crs": "EPSG:32614", "transform": rasterio.Affine(10, 0, 600_000, 0, -10, 4_000_000)}
    with rasterio.open(tmp_path / "m.tif", "w", "GTiff", 43, 60, 1, dtype="uint8", **place) as file:
        file.write(ids, 1)
    scales = ("--mask-scale", "2", "--reference-scale", "1.5")
    paint(painting(tmp_path / "scene.tif", *scales, mask=tmp_path / "m.tif"))
    paint(painting(tmp_path / "scene.png", *scales, mask=tmp_path / "m.tif"))
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert {"crs": file.crs, "transform": file.transform} == place and file.overviews(1) == [2]
        np.testing.assert_array_equal(file.read().transpose(1, 2, 0), pixels(tmp_path / "scene.png"))
    place["crs"] = None
    with rasterio.open(tmp_path / "none.tif", "w", "GTiff", 43, 60, 1, dtype="uint8", **place) as file:
        file.write(ids, 1)
    line = cli.refused("scene", *painting(tmp_path / "other.tif", mask=tmp_path / "none.tif"))
    assert "has a place but no CRS" in line


def test_no_scene_is_larger_than_the_disk(cli, painting, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    assert "a scene of 64 x 96 px takes up to" in cli.refused("scene", *painting(tmp_path / "scene.png"))
    assert list(tmp_path.iterdir()) == []
    assert "written as one of .png" in cli.refused("scene", *painting(tmp_path / "scene.gif"))
    assert "multiple of 8 px" in cli.refused("scene", *painting(tmp_path / "scene.png", "--window", "12"))


def test_hints_are_those_of_the_whole_scene(scenes):
    model = create_model(SMALL, classes=str(scenes / "classes.json"))
    hint = torch.rand(3, 128, 96)
    with torch.inference_mode():
        whole = model.control_model.encode_hint(hint[None])
        for corner in ((0, 0), (9, 8), (24, 16)):
            (top, left, height, width), crop = around(corner, (8, 8), (32, 24))
            seen = hint[:, 4 * top : 4 * (top + height), 4 * left : 4 * (left + width)]
            shared = {"mask": torch.empty(1, 0), "text": torch.zeros(1, 7, 16)}
            one = WindowConditions(**shared, surroundings=(seen,), crops=(crop,))
            features = one.joined(one).mask_features(model.control_model)
            expected = whole[:, :, corner[0] : corner[0] + 8, corner[1] : corner[1] + 8]
            torch.testing.assert_close(features, expected.expand(2, -1, -1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (300, 7), (257, 40)])
def test_png(shape, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with (tmp_path / "a.png").open("wb") as file:
        write_png(file, image)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), image)


@pytest.fixture
def random_mask(tmp_path):
    def random_mask(height, width):
        ids = np.random.default_rng(0).integers(0, 4, (height // 16, width // 16), np.uint8)
        path = tmp_path / f"{height}.png"
        Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST).save(path)
        return path

    return random_mask


def test_seams_have_no_more_gradient_than_other_places(painting, random_mask, tmp_path):
    paint(painting(tmp_path / "scene.png", mask=random_mask(128, 128)))
    image = pixels(tmp_path / "scene.png")
    changes = [np.abs(np.diff(image, axis=axis)).mean(axis=(1 - axis, 2)) for axis in (0, 1)]
    change = np.stack(changes)[:, 3::4]  # where blocks of the first stage meet: within them there is less
    seams = np.arange(change.shape[1]) % 4 == 3  # windows of 8 latent pixels begin and end at each fourth
    assert abs(change[:, seams].mean() / change[:, ~seams].mean() - 1) < 0.05


def test_memory_does_not_grow_with_the_height(painting, random_mask, tmp_path, monkeypatch):
    work, largest = run._made, []

    def counted(*words):
        with Largest() as mode:
            made = work(*words)
        largest.append(mode.largest)
        return made

    monkeypatch.setattr(run, "_made", counted)
    for height in (96, 160):
        paint(painting(tmp_path / f"{height}_scene.png", mask=random_mask(height, 32)))
    assert largest[0] == largest[1]


def test_a_class_table_is_enough_where_the_file_names_none(cli, painting, scenes, tmp_path):
    config, weights = without_a_class_table(tmp_path, scenes / "classes.json")
    small = scenes / "label_train" / "train_0001.png"
    cli("scene", *painting(tmp_path / "scene.png", "--config", config, "--ckpt", weights, mask=small))
    assert pixels(tmp_path / "scene.png").shape == (32, 32, 3)

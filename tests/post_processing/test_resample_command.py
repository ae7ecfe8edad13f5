import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from common import command as cli
from common.errors import InputError
from common.pairing import Pair
from post_processing import resampled_folders
from post_processing.resample import ResampleOptions
from post_processing.resample_inputs import classes_by_name, classes_by_score
from post_processing.resample_rule import keep_reason
from scripts import resample
from tests.conftest import ROOT

CLASSES = ["traffic land", "inland water", "forest"]


def run(*argv):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: resample.main([str(part) for part in argv]))
    return stop.value.code


@pytest.fixture
def data(tmp_path):
    """Masks of 10 x 10: name -> pixels of classes 0, 1, 2; the rest is 255."""
    for name, pixels in {
        "full": (100, 0, 0),
        "edge": (80, 0, 0),
        "over": (81, 0, 0),
        "rare": (0, 1, 0),
        "none": (0, 0, 0),
        "both": (50, 45, 0),
    }.items():
        ids = np.full(100, 255, np.uint8)
        ids[: sum(pixels)] = np.repeat(np.arange(3), pixels)
        for folder, array, suffix in (("masks", ids.reshape(10, 10), "png"), ("images", np.zeros((10, 10, 3)), "jpg")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / folder / f"{name}_seed_1.{suffix}")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    (tmp_path / "metrics.json").write_text(
        json.dumps({"classes": {"traffic land": {"IoU": 0.7}, "inland water": {"IoU": 0.2}, "forest": {"IoU": None}}})
    )
    return tmp_path


def options(data, *more, out="out"):
    return [
        "--filtered-mask-path",
        data / "masks",
        "--syn-img-path",
        data / "images",
        "--out-dir",
        data / out,
        "--classes",
        data / "classes.json",
        "--num-workers",
        1,
        *more,
    ]


def kept(data, out="out"):
    images = {path.stem.removesuffix("_seed_1") for path in (data / out / "resampled_img").iterdir()}
    assert images == {path.stem.removesuffix("_seed_1") for path in (data / out / "resampled_label").iterdir()}
    return images


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ([], {"full", "over", "both"}),
        (["--inaccurate", "Inland_Water"], {"full", "over", "both", "rare"}),
        (["--metrics", "METRICS", "--below", 0.5], {"full", "over", "both", "rare"}),
        (["--metrics", "METRICS", "--worst", 1], {"full", "over", "both", "rare"}),
        (["--metrics", "METRICS", "--worst", 2], {"full", "edge", "over", "both", "rare"}),
        (["--min-valid", 0.9], {"full", "both"}),
        (["--inaccurate", "inland water", "--min-pixels", 2], {"full", "over", "both"}),
    ],
)
def test_the_choice(data, more, names):
    assert run(*options(data, *[data / "metrics.json" if part == "METRICS" else part for part in more])) == 0
    assert kept(data) == names


def test_it_is_called_from_python_without_torch(data):
    work = f"""
import sys
from pathlib import Path
from post_processing.resample import ResampleOptions, resample
data = Path({str(data)!r})
done = resample(ResampleOptions(
    filtered_mask_path=data / "masks", syn_img_path=data / "images", out_dir=data / "out",
    classes=str(data / "classes.json"), inaccurate="inland water"))
assert sorted(done.kept) == ["both_seed_1", "full_seed_1", "over_seed_1", "rare_seed_1"]
assert done.statistics["reasons"] == {{"inaccurate class": 2, "valid pixels": 2}}
assert not {{"torch", "mmengine", "mmcv", "mmseg"}} & set(sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", work], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert kept(data) == {"full", "over", "both", "rare"}


def test_options_that_contradict_each_other_are_named_by_field(data):
    folders = {"filtered_mask_path": data / "masks", "syn_img_path": data / "images", "out_dir": data / "out"}
    with pytest.raises(InputError, match=r"^below and worst need metrics FILE$"):
        ResampleOptions(**folders, worst=1)
    with pytest.raises(InputError, match=r"^min_valid 80: 80: write a number, 0 to 1|^min_valid 80"):
        ResampleOptions(**folders, min_valid=80)


def test_report_and_hard_links(data):
    assert run(*options(data, "--inaccurate", "inland water")) == 0
    stats = json.loads((data / "out/resample_stats.json").read_text())
    assert (stats["images"], stats["kept"]) == (6, 4)
    assert stats["reasons"] == {"inaccurate class": 2, "valid pixels": 2}
    water = stats["per_class"]["inland water"]
    assert water["inaccurate"] and water["share_before"] == pytest.approx(46 / 357)
    assert water["share_after"] == pytest.approx(46 / 277) and (water["images_before"], water["images_after"]) == (2, 2)
    assert stats["image"]["edge_seed_1"] == {"kept": None, "valid_share": 0.8}
    assert "<svg" in (data / "out/resample_stats.svg").read_text()
    for folder, source, name in (
        ("resampled_img", "images", "full_seed_1.jpg"),
        ("resampled_label", "masks", "full_seed_1.png"),
    ):
        assert (data / "out" / folder / name).samefile(data / source / name)
    before = (data / "out/resampled_img/full_seed_1.jpg").stat().st_ctime_ns
    assert run(*options(data, "--inaccurate", "inland water")) == 0  # again: nothing is done twice
    assert (data / "out/resampled_img/full_seed_1.jpg").stat().st_ctime_ns == before


def test_weight_maps_go_along(data, capsys):
    (data / "weights").mkdir()
    for name in ("full", "over", "both"):
        Image.new("L", (10, 10), 99).save(data / f"weights/{name}_seed_1.png")
    assert run(*options(data, "--weight-map-path", data / "weights")) == 0
    names = {path.name for path in (data / "out/resampled_weight").iterdir()}
    assert names == {path.name for path in (data / "out/resampled_label").iterdir()} and len(names) == 3
    assert (data / "out/resampled_weight/full_seed_1.png").samefile(data / "weights/full_seed_1.png")
    (data / "weights/over_seed_1.png").unlink()
    assert run(*options(data, "--weight-map-path", data / "weights", out="other")) == 2
    assert "no over_seed_1.png (1 of 3 missing)" in capsys.readouterr().err


def test_copies_do_not_share_the_file(data):
    for _ in range(2):
        assert run(*options(data, "--copy")) == 0
    name = data / "out/resampled_label/full_seed_1.png"
    assert not name.samefile(data / "masks/full_seed_1.png")
    assert name.read_bytes() == (data / "masks/full_seed_1.png").read_bytes()


def test_a_file_system_without_hard_links(data, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(resampled_folders.os, "link", refuse)
    pair = Pair("full_seed_1", data / "images/full_seed_1.jpg", data / "masks/full_seed_1.png")
    resampled_folders.add_pair(pair, data / "out", copy=False)
    assert (data / "out/resampled_img/full_seed_1.jpg").read_bytes() == (data / "images/full_seed_1.jpg").read_bytes()


def test_a_full_disk_leaves_nothing_half_written(data, capsys, monkeypatch):
    copy, copied = resampled_folders.shutil.copy2, []

    def fill(source, target):
        copied.append(target)
        if len(copied) == 3:
            target.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(resampled_folders.shutil, "copy2", fill)
        assert run(*options(data, "--copy")) == 2
    assert "disk full: " in (said := capsys.readouterr().err) and "No space left on device" in said
    whole = {path.stat().st_size for path in (data / "images").iterdir()}
    assert {path.stat().st_size for path in (data / "out/resampled_img").iterdir()} <= whole
    assert run(*options(data, "--copy")) == 0
    assert kept(data) == {"full", "over", "both"}


def test_the_image_gets_the_mask_size(data):
    path = data / "images/full_seed_1.jpg"
    Image.open(path).resize((5, 5)).save(path)
    assert run(*options(data)) == 0
    assert Image.open(data / "out/resampled_img/full_seed_1.jpg").size == (10, 10)
    assert Image.open(path).size == (5, 5)


def test_all_cores_choose_the_same(data):
    assert run(*options(data)) == 0
    assert run(*options(data, "--num-workers", 2, out="other")) == 0
    assert kept(data) == kept(data, "other")


BAD = {
    "out inside the input": (lambda d: None, ["--out-dir", "masks/x"], "lies inside"),
    "no such class": (lambda d: None, ["--inaccurate", "road"], "no class road; the table has traffic land"),
    "no table": (lambda d: None, ["--classes", "nothing.json"], "nothing.json"),
    "metrics of another table": (
        lambda d: (d / "metrics.json").write_text('{"classes": {"a": {"IoU": 1}}}'),
        ["--metrics", "metrics.json", "--worst", "1"],
        "no class traffic land",
    ),
    "not metrics": (
        lambda d: (d / "metrics.json").write_text("{}"),
        ["--metrics", "metrics.json", "--worst", "1"],
        "metrics.json, field classes: field required",
    ),
    "metrics without a choice": (lambda d: None, ["--metrics", "metrics.json"], "--below or --worst"),
    "choice without metrics": (lambda d: None, ["--worst", "1"], "need --metrics"),
    "share": (lambda d: None, ["--min-valid", "80"], "--min-valid: 80: write a number, 0 to 1"),
    "mask without image": (lambda d: (d / "images/full_seed_1.jpg").unlink(), [], "no image full_seed_1"),
    "image without mask": (lambda d: (d / "masks/full_seed_1.png").unlink(), [], "no mask full.png"),
    "id beyond": (lambda d: Image.new("L", (10, 10), 3).save(d / "masks/full_seed_1.png"), [], "class ids 3 are not"),
    "damaged mask": (lambda d: (d / "masks/full_seed_1.png").write_bytes(b"x"), [], "full_seed_1.png: cannot be read"),
    "empty folder": (lambda d: [path.unlink() for path in (d / "masks").iterdir()], [], "masks: empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_work(data, capsys, monkeypatch, case):
    monkeypatch.chdir(data)
    change, more, message = BAD[case]
    change(data)
    assert run(*options(data, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not list(data.glob("out/*/*"))


def test_invalid_files_can_be_left_out(data, capsys):
    (data / "images/full_seed_1.jpg").unlink()
    (data / "masks/over_seed_1.png").write_bytes(b"x")
    assert run(*options(data, "--skip-invalid")) == 0
    assert kept(data) == {"both"} and "full_seed_1" in capsys.readouterr().err


def test_another_selection_does_not_mix_into_a_finished_folder(data, capsys):
    assert run(*options(data)) == 0
    assert run(*options(data, "--min-valid", 0.99)) == 2
    assert "another selection" in capsys.readouterr().err and kept(data) == {"full", "over", "both"}


def test_published_class_names_are_accepted():
    assert classes_by_name(["Traffic Land", "inland-water"], CLASSES) == [0, 1]


def test_a_class_that_no_test_image_shows_is_not_poor():
    scores = {"forest": None, "inland water": 0.0, "traffic land": 0.5}
    assert classes_by_score(scores, CLASSES, None, 3) == [0, 1]
    assert classes_by_score(scores, CLASSES, 0.5, None) == [1]


def test_more_than_the_share_is_needed():
    assert keep_reason(np.array([80]), 100, [], 0.8) is None
    assert keep_reason(np.array([81]), 100, [], 0.8) == "valid pixels"
    assert keep_reason(np.array([0]), 100, [0], 0.0) is None


def test_the_published_line_with_its_three_paths(data, capsys):
    """FUSU's classes, and the five that the published script has built in: 4, 10, 11, 12 and 16."""
    for name, id_ in {"grass": 16, "special": 12, "storage": 14}.items():
        ids = np.full((10, 10), 255, np.uint8)
        ids[0, 0] = id_
        Image.fromarray(ids).save(data / "masks" / f"{name}_seed_1.png")
        Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(data / "images" / f"{name}_seed_1.jpg")
    line = ["--filtered-mask-path", data / "masks", "--syn-img-path", data / "images", "--out-dir", data / "out"]
    assert run(*line) == 0
    assert kept(data) == {"full", "over", "both", "grass", "special"}
    out = capsys.readouterr().out
    assert "classes of FUSU, poorly recognized agriculture construction, special, public construction" in out
    # another filter's classes are not taken for FUSU's
    (data / "masks" / "filter_stats.json").write_text(json.dumps({"per_class": {"sea": {}}}))
    assert run(*line[:-1], data / "other") == 2
    assert "was filtered with a class sea that is none of FUSU's" in capsys.readouterr().err

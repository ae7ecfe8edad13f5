"""Folders and class tables that people bring, by the command line of re-sampling, and of what else reads them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.odd_files import IDS, PIXELS, encoded


@pytest.fixture
def folders(tmp_path):
    """Three pairs of images and filtered masks, and their class table."""
    for name in ("a", "b", "c"):
        for folder, content in (("img", encoded(PIXELS)), ("mask", encoded(IDS))):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.png").write_bytes(content)
    table(tmp_path, classes=["road", "field", "wood", "lake"])
    return tmp_path


def table(folder, **content):
    (folder / "classes.json").write_text(json.dumps(content))


def resample(folder, *more):
    return [
        "resample",
        "--filtered-mask-path",
        folder / "mask",
        "--syn-img-path",
        folder / "img",
        "--out-dir",
        folder / "out",
        "--classes",
        folder / "classes.json",
        *more,
    ]


def in_a_subfolder(folder):
    (folder / "img/north/deep").mkdir(parents=True)
    (folder / "img/c.png").rename(folder / "img/north/deep/c.png")
    (folder / "mask/c.png").unlink()


def renamed(old, new):
    return lambda folder: (folder / old).rename(folder / new)


CASES = {
    "a subfolder": (in_a_subfolder, "img/north/deep/c.png: lies in a subfolder"),
    "another format": (
        lambda d: (renamed("img/c.png", "img/c.webp")(d), (d / "mask/c.png").unlink()),
        "img/c.webp: files .webp are not read",
    ),
    "a line break": (
        lambda d: (renamed("img/c.png", "img/c\n.png")(d), (d / "mask/c.png").unlink()),
        "a name with line breaks",
    ),
    "a surrogate": (
        lambda d: (renamed("img/c.png", "img/c\udc80.png")(d), (d / "mask/c.png").unlink()),
        "a name with line breaks",
    ),
    "a pipe": (lambda d: ((d / "mask/c.png").unlink(), os.mkfifo(d / "mask/c.png")), "mask/c.png: is a pipe or device"),
    "a damaged image": (lambda d: (d / "img/c.png").write_bytes(encoded(PIXELS)[:-99]), "img/c.png: cannot be read"),
}


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_refused_by_name_or_left_out_with_a_word(cli, folders, case):
    change, says = CASES[case]
    change(folders)
    assert says in cli.refused(*resample(folders))
    assert not (folders / "out/resampled_img").exists()
    out = cli(*resample(folders, "--skip-invalid"))
    assert says in out and "2 of 2 images kept" in out


def test_two_files_of_one_name_in_any_spelling(cli, folders):
    (folders / "img/b.JPG").write_bytes(encoded(PIXELS, "JPEG"))
    assert "both b.JPG and b.png; remove one" in cli.refused(*resample(folders))


def test_capital_suffixes_and_tiffs_are_taken(cli, folders):
    renamed("img/a.png", "img/a.PNG")(folders)
    renamed("mask/b.png", "mask/b.PNG")(folders)
    (folders / "img/c.png").unlink()
    (folders / "img/c.JPEG").write_bytes(encoded(PIXELS, "JPEG"))
    (folders / "mask/c.png").unlink()
    (folders / "mask/c.tiff").write_bytes(encoded(IDS, "TIFF"))
    assert "3 of 3 images kept" in cli(*resample(folders))


def test_masks_that_show_nothing(cli, folders):
    for path in (folders / "mask").iterdir():
        Image.new("L", (64, 64), 255).save(path)
    assert "no mask shows a class" in cli.refused(*resample(folders))


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("abcd", "field classes: must be a list of names"),
        (["road", "Road", "wood", "lake"], "duplicate names: road and Road"),
        (["a b", "a_b", "wood", "lake"], "duplicate names: a b and a_b"),
        (["a\nb", "field", "wood", "lake"], "line break"),
        (["a\u202eb", "field", "wood", "lake"], "line break or a character that is no text"),
        (["x" * 5000, "field", "wood", "lake"], "5000 letters"),
        (None, "field classes: must be a list"),
    ],
)
def test_class_names_that_cannot_be_told_apart(cli, folders, classes, says):
    table(folders, classes=classes)
    assert says in cli.refused(*resample(folders))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"{",
        b"\xff\xfe\x00",
        '{"classes": ["a"]}'.encode("utf-16"),
        b" " * (1 << 21),
        b"",
        b'{"classes": ["a"], "classes": ["b"]}',
        b'{"classes": ["a", "b"], "palete": []}',
        b'{"classes": ["a"], "x": NaN}',
    ],
    ids=range(9),
)
def test_files_that_are_no_class_tables(cli, folders, content):
    (folders / "classes.json").write_bytes(content)
    assert "classes.json" in cli.refused(*resample(folders))


def test_a_byte_order_mark_is_read_by_all(cli, folders):
    text = json.dumps({"classes": ["road", "field", "wood", "lake"]})
    (folders / "classes.json").write_text(text, encoding="utf-8-sig")
    assert "3 of 3" in cli(*resample(folders))
    made = folders / "palette.json"
    cli(
        "posterior_learning",
        "--classes",
        folders / "classes.json",
        "--masks",
        folders / "mask",
        "--restarts",
        "1",
        "--out",
        made,
    )  # it makes the palette that the table lacks
    assert len(json.loads(made.read_text())["palette"]) == 4
    made.write_text(made.read_text(), encoding="utf-8-sig")
    assert "4 colors" in cli.refused(
        "train_dvae",
        "--palette",
        _shorter(made),
        "--masks",
        folders / "mask",
        "--out",
        folders / "w.pth",
        "--crop-size",
        "32",
    )


def _shorter(path):
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    content["classes"] = content["classes"][:3]
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("ignore", [9, 0, 200])
def test_a_tables_own_id_to_ignore(cli, folders, ignore):
    names = ["none", "road", "field", "wood"] if ignore == 0 else ["road", "field", "wood", "lake"]
    table(folders, classes=names, ignore_index=ignore)
    mask = np.where(IDS == 2, ignore, IDS).astype(np.uint8)
    for path in (folders / "mask").iterdir():
        Image.fromarray(mask).save(path)
    out = cli(*resample(folders, "--min-valid", "0.9"))
    assert "0 of 3 images kept" in out
    stats = json.loads((folders / "out/resample_stats.json").read_text())
    shares = {name: image["valid_share"] for name, image in stats["image"].items()}
    assert set(shares.values()) == {round(float((mask != ignore).mean()), 4)}
    for path in (folders / "mask").iterdir():
        Image.fromarray(np.where(mask == ignore, 255, mask).astype(np.uint8)).save(path)
    assert "class ids 255 are not in" in cli.refused(*resample(folders))


def test_a_tiff_that_is_resized_keeps_its_weight_map(cli, folders):
    pytest.importorskip("rasterio")  # without it, TIFFs are resized as other pictures
    (folders / "weights").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(IDS).save(folders / f"weights/{name}.png")
    (folders / "img/c.png").unlink()
    Image.fromarray(PIXELS).resize((2 * PIXELS.shape[1], 2 * PIXELS.shape[0])).save(folders / "img/c.tif")
    cli(*resample(folders, "--min-valid", 0, "--weight-map-path", folders / "weights"))
    assert Image.open(folders / "out/resampled_img/c.tif").size == PIXELS.shape[1::-1]
    assert (folders / "out/resampled_weight/c.png").samefile(folders / "weights/c.png")

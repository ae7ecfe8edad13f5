"""A clean data set, then one fault of each kind."""

import json

import numpy as np
import pytest
from PIL import Image

from common.command import read_options
from common.errors import InputError
from importing.checks.options import CheckOptions
from importing.checks.run import check_data
from tests.importing.conftest import NAMES

SIDE = 64


def scene(number):
    """Bars of another width and direction for each number: no two look alike."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def mask(number):
    ids = np.zeros((SIDE, SIDE), np.uint8)
    ids[: 20 + number] = 1
    ids[40:, 10:30] = 2
    return ids


@pytest.fixture
def clean(data):
    """Three pairs to train with, two to test."""
    for split, numbers in (("train", (0, 1, 2)), ("test", (3, 4))):
        lines = []
        for number in numbers:
            data.save(f"img_{split}/s{number}.png", scene(number))
            data.save(f"label_{split}/s{number}.png", mask(number))
            line = {"source": f"label_{split}/s{number}.png", "target": f"img_{split}/s{number}.png", "prompt": "water"}
            lines.append(json.dumps(line))
        data.write(f"{split}_set_items.json", "\n".join(lines) + "\n")
    data.save("ref_img/r.png", scene(0))  # a training image may be a reference
    data.write("classes.json", {"classes": list(NAMES)})
    return data


def checked(data, *words):
    return check_data(
        read_options(CheckOptions, "", [str(data.root), *map(str, words)]), lambda prompt: len(prompt.split())
    )


def codes(data, *words):
    return {finding["code"]: finding for finding in checked(data, *words).report["findings"]}


def test_a_clean_data_set(clean, tmp_path):
    found = checked(clean, "--json", tmp_path / "c.json", "--html", tmp_path / "c.html")
    assert found.clean and found.report["findings"] == []
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["images"] == {"train": 3, "test": 2, "ref": 1}
    assert report["shares"]["train"]["forest"] == round((20 + 21 + 22) / 3 / SIDE, 6)
    page = (tmp_path / "c.html").read_text()
    assert page.count("data:image/png;base64") == 5 and "http" not in page and "<script" not in page
    assert "water" in found.text and found.text.endswith("0 errors, 0 warnings, 0 notes")


def edit(data, name, change):
    path = data.root / name
    values = np.asarray(Image.open(path)).copy()
    Image.fromarray(change(values)).save(path)


def write(data, name, values):
    data.save(name, values)


FAULTS = {
    "partner": ("error", lambda data: (data.root / "label_train" / "s1.png").unlink()),
    "unreadable": ("error", lambda data: (data.root / "img_train" / "s1.png").write_bytes(b"\x89PNG\r\n\x1a\n")),
    "size": ("error", lambda data: edit(data, "label_train/s1.png", lambda ids: ids[:32])),
    "unknown-ids": ("error", lambda data: edit(data, "label_train/s1.png", lambda ids: np.where(ids == 1, 9, ids))),
    "counted-from-1": (
        "error",
        lambda data: [edit(data, f"label_train/s{n}.png", lambda ids: ids + 1) for n in range(3)],
    ),
    "same-image": ("error", lambda data: write(data, "img_test/s3.png", scene(0))),
    "list": (
        "error",
        lambda data: data.write("train_set_items.json", '{"source": "label_train/no.png", "prompt": "x"}\n'),
    ),
    "empty": ("warning", lambda data: edit(data, "label_train/s1.png", lambda ids: ids * 0 + 255)),
    "near-copy": ("warning", lambda data: write(data, "img_test/s3.png", scene(0)[:, ::2] // 2 + 60)),
    "twice": ("warning", lambda data: write(data, "img_train/s1.png", scene(0))),
    "bands": ("warning", lambda data: edit(data, "img_train/s1.png", lambda values: values[..., 0])),
    "absent": ("warning", lambda data: data.write("classes.json", {"classes": [*NAMES, "snow"]})),
    "untrained": (
        "warning",
        lambda data: [edit(data, f"label_train/s{n}.png", lambda ids: np.where(ids == 2, 0, ids)) for n in range(3)],
    ),
    "long-prompt": (
        "warning",
        lambda data: data.write(
            "train_set_items.json",
            json.dumps({"source": "label_train/s0.png", "target": "img_train/s0.png", "prompt": "a " * 76}) + "\n",
        ),
    ),
    "zero-is-black": (
        "warning",
        lambda data: [
            edit(data, f"img_{split}/s{n}.png", lambda values, n=n: np.where(mask(n)[..., None] == 0, 0, values))
            for split, n in (("train", 0), ("train", 1), ("train", 2), ("test", 3), ("test", 4))
        ],
    ),
    "scene-in-two-splits": (
        "warning",
        lambda data: [
            (data.root / f"{kind}_{split}" / f"s{n}.png").rename(data.root / f"{kind}_{split}" / f"s_y00_x{n}.png")
            for kind in ("img", "label")
            for split, n in (("train", 0), ("test", 3))
        ],
    ),
    "one-class": ("note", lambda data: edit(data, "label_train/s1.png", lambda ids: ids * 0)),
    "exif": ("note", lambda data: write_turned(data)),
    "sizes": ("note", lambda data: [edit(data, f"{kind}_train/s1.png", lambda v: v[:32]) for kind in ("img", "label")]),
    "side": ("note", lambda data: [edit(data, f"{kind}_train/s1.png", lambda v: v[:32]) for kind in ("img", "label")]),
    "unlisted": (
        "note",
        lambda data: data.write("train_set_items.json", (data.root / "test_set_items.json").read_text()),
    ),
    "unread": ("warning", lambda data: (data.root / "ref_img" / "r.png").rename(data.root / "ref_img" / "r.bmp")),
    "no-list": ("warning", lambda data: [path.unlink() for path in data.root.glob("*_items.json")]),
}


def write_turned(data):
    path = data.root / "img_train" / "s1.png"
    image = Image.open(path)
    exif = image.getexif()
    exif[274] = 6
    image.save(path, exif=exif)


@pytest.mark.parametrize("code", FAULTS)
def test_each_fault_is_found(clean, code):
    severity, make = FAULTS[code]
    make(clean)
    found = checked(clean)
    severities = {finding["code"]: finding["severity"] for finding in found.report["findings"]}
    assert severities[code] == severity, severities
    assert found.clean == ("error" not in severities.values())


def test_a_table_that_counts_from_1_and_masks_that_may_not(clean):
    clean.write("classes.json", {"classes": list(NAMES), "mask_values": [1, 2, 3], "mask_ignore": [0]})
    found = codes(clean)
    assert found["counted-from-0-or-1"]["severity"] == "error"


def test_what_is_no_data_set(data):
    with pytest.raises(InputError, match="has no folder img_train"):
        checked(data)
    data.image("img_train/a.png")
    with pytest.raises(InputError, match=r"has no classes.json; name the class table with classes"):
        checked(data)

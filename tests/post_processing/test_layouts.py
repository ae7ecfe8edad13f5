"""New layouts: real pieces alone, towards the shares asked for, the first ones whatever the count."""

import json

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from common.images import read_mask
from post_processing.layouts import Moves, Piece, changed, cut, pasted
from scripts import layouts

NAMES = ["field", "house", "water"]


@pytest.fixture
def masks(tmp_path):
    """Fields; on each a house of 10 x 10 and a strip of unknown pixels; one has a pond."""
    folder = tmp_path / "label"
    folder.mkdir()
    (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES}))
    for n in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[4 * n : 4 * n + 10, 20:30] = 1
        mask[40:60, 40:60] = 2 if n == 0 else 0
        mask[:, 63] = 255
        Image.fromarray(mask).save(folder / f"m{n}.png")
    return folder


@pytest.fixture
def make(masks, tmp_path, capsys):
    def call(out, *words):
        options = ["--mask-path", masks, "--classes", tmp_path / "classes.json", "--out", tmp_path / out]
        layouts.main([str(word) for word in [*options, *words]])
        return json.loads((tmp_path / out / "layouts.json").read_text()), tmp_path / out

    return call


def test_shares_come_near_to_those_asked_for(make):
    report, out = make("some", "--count", 40, "--pieces", 16, "--towards", "house=0.15", "water=0.1")
    shares = report["shares"]
    assert shares["house"]["real"] == pytest.approx(4 * 100 / (4 * 64 * 63), abs=1e-4)
    assert shares["field"]["asked"] == pytest.approx(0.75, abs=1e-4)
    assert abs(shares["house"]["layouts"] - 0.15) < 0.03 and abs(shares["water"]["layouts"] - 0.1) < 0.03
    found = [read_mask(path) for path in sorted((out / "label").iterdir())]
    assert len(found) == 40 and all(set(np.unique(mask)) <= {0, 1, 2, 255} for mask in found)
    assert all((mask == 255).sum() == 64 for mask in found)  # what was unknown of the base stays, and no more comes
    pixels = np.bincount(np.stack(found).ravel(), minlength=256)[:3]
    assert pixels[1] / pixels.sum() == pytest.approx(shares["house"]["layouts"], abs=1e-4)
    items = [json.loads(line) for line in (out / "items.json").read_text().splitlines()]
    assert all((out / item["source"]).is_file() for item in items)
    named = items[0]["prompt"].removeprefix("a satellite image of ").split()
    assert named == [NAMES[c] for c in np.unique(found[0]) if c != 255]
    assert any(origin["pieces"] for origin in report["layouts"].values())


def test_the_list_is_one_of_the_data_set(make, tmp_path):
    _, out = make("data/new", "--count", 1, "--data-root", tmp_path / "data")
    assert json.loads((out / "items.json").read_text())["source"] == "new/label/layout_000000.png"


def test_the_first_layouts_are_the_same_whatever_the_count(make):
    few, some = (make(f"{count}", "--count", count)[1] for count in (3, 9))
    other = make("other", "--count", 3, "--seed", 1)[1]
    names = sorted(path.name for path in (few / "label").iterdir())
    assert all((few / "label" / name).read_bytes() == (some / "label" / name).read_bytes() for name in names)
    assert any((few / "label" / name).read_bytes() != (other / "label" / name).read_bytes() for name in names)


def test_a_piece_is_a_region_with_its_margin():
    ids = np.zeros((40, 40), np.uint8)
    ids[10:20, 10:15] = 1
    ids[10:20, 15] = 255
    draw = np.random.default_rng(0)
    piece = cut(ids, 1, Moves(margin=0, smallest=50), draw)
    assert piece.shape.all() and piece.ids.shape == (10, 5) and (piece.ids == 1).all()
    piece = cut(ids, 1, Moves(margin=2, smallest=50), draw)
    assert piece.ids.shape == (14, 9) and set(np.unique(piece.ids[piece.shape])) == {0, 1}
    assert cut(ids, 1, Moves(smallest=51), draw) is None and cut(ids, 0, Moves(), draw) is None  # too small, too large
    sizes = [changed(piece, Moves(scales=(2.0, 2.0)), draw).shape.sum() / piece.shape.sum() for _ in range(20)]
    assert np.mean(sizes) == pytest.approx(4, rel=0.1)
    whole = Piece(np.full((100, 100), 2, np.uint8), np.ones((100, 100), bool))
    assert (pasted(ids, whole, draw) == 255).sum() == 10  # what is unknown stays so


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--towards", "tree=0.1"], "tree=0.1: no class of that name; the classes are field, house, water"),
        (["--towards", "house=2"], "house=2: the share must be a number in 0..1"),
        (["--towards", "house=0.7", "water=0.7"], "the shares add up to 1.4, more than 1"),
        (["--towards", "house=0.1", "house=0.2"], "the class is named twice"),
        (["--data-root", "/usr"], "refused: is not below data_root /usr"),
        (["--scale", "2", "1"], "scale 2 1: the smaller factor comes first"),
    ],
)
def test_what_cannot_be(make, tmp_path, words, message):
    with pytest.raises(InputError) as error:
        make("refused", *words)
    assert message in str(error.value)
    assert not (tmp_path / "refused").exists()

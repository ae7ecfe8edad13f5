import json

import numpy as np
import pytest
from PIL import Image

from common.files import write_json
from common.journal import sealed
from common.plots import plt
from post_processing.filter_state import BINS
from post_processing.resample_report import resample_figure
from post_processing.resample_rule import drawn, images_to_keep, mask_hardness, ranks_of

CLASSES = ["traffic land", "inland water", "forest"]
NAN = float("nan")


def test_hardness_is_the_mean_of_the_classes_mean_losses():
    pixels = np.array([[4, 0, 0], [0, 4, 0], [2, 2, 0], [1, 1, 8], [0, 0, 5], [0, 0, 0]])
    assert mask_hardness(pixels, np.array([0.5, 1.5, NAN])).tolist() == [0.5, 1.5, 1.0, 1.0, 0.0, 0.0]


def test_equally_hard_masks_follow_the_order_of_names():
    assert ranks_of(np.array([0.5, 1.5, 1.0, 1.0])).tolist() == [1, 4, 2, 3]


@pytest.mark.parametrize(
    ("rank", "masks", "images", "kept"),
    [
        (1, 100, 20, 1),  # 1 + round(0.2)
        (1, 8, 20, 3),  # 1 + round(2.5): halves go to the even number, as Python's round does
        (3, 8, 20, 9),  # 1 + round(7.5)
        (100, 100, 20, 20),
        (99, 100, 20, 20),
        (1, 1, 1, 1),
        (1, 3, 2, 2),
        (1, 5, 3, 2),
    ],
)
def test_how_many_images_a_mask_keeps(rank, masks, images, kept):
    assert images_to_keep(rank, masks, images) == kept


def test_more_of_a_mask_holds_what_fewer_held():
    draws = [30, 10, 20]
    assert [drawn(draws, count) for count in (0, 1, 2, 3)] == [set(), {1}, {1, 2}, {0, 1, 2}]


def put(path, pixels):
    ids = np.full(100, 255, np.uint8)
    ids[: sum(pixels)] = np.repeat(np.arange(3), pixels)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(ids.reshape(10, 10)).save(path)


@pytest.fixture
def data(tmp_path):
    """Four masks, from easy to hard d, c, b, a, of four images each; filtered: half of the pixels are gone."""
    masks = {"a": (0, 100, 0), "b": (25, 75, 0), "c": (50, 50, 0), "d": (100, 0, 0)}
    images = {}
    for name, pixels in masks.items():
        put(tmp_path / "masks" / f"{name}.png", pixels)
        for seed in range(4):
            half = tuple(n // 2 for n in pixels)
            put(tmp_path / "filtered" / f"{name}_seed_{seed}.png", half)
            (tmp_path / "images").mkdir(exist_ok=True)
            Image.new("RGB", (10, 10)).save(tmp_path / "images" / f"{name}_seed_{seed}.jpg")
            dropped = [p - h for p, h in zip(pixels, half, strict=True)]
            images[f"{name}_seed_{seed}"] = {"kept": half, "dropped": dropped}
    losses = dict(zip(CLASSES, (0.25, 2.0, None), strict=True))
    write_json(
        {"per_class": {name: {"mean_loss_real": loss} for name, loss in losses.items()}, "images": images},
        tmp_path / "filtered/filter_stats.json",
    )
    real = {"classes": CLASSES, "mean_loss": list(losses.values()), "pixels": [9, 9, 0], "histogram": [[0] * BINS] * 3}
    write_json(sealed(real), tmp_path / "real_loss.json")
    write_json({"classes": CLASSES}, tmp_path / "classes.json")
    return tmp_path


def options(data, *more, out="out"):
    return [
        "--filtered-mask-path",
        data / "filtered",
        "--syn-img-path",
        data / "images",
        "--out-dir",
        data / out,
        "--classes",
        data / "classes.json",
        "--num-workers",
        1,
        "--rule",
        "hardness",
        *more,
    ]


def kept(data, out="out"):
    names = {path.stem for path in (data / out / "resampled_img").iterdir()}
    assert names == {path.stem for path in (data / out / "resampled_label").iterdir()}
    return names


def numbers(names):
    return {mask: sum(name[0] == mask for name in names) for mask in "abcd"}


def test_harder_masks_keep_more_images(data, cli):
    said = cli("resample", *options(data))
    assert numbers(kept(data)) == {"d": 2, "c": 3, "b": 4, "a": 4} and "13 of 16 images kept" in said
    stats = json.loads((data / "out/resample_stats.json").read_text())
    assert stats["reasons"] == {"hardness": 13} and stats["options"]["rule"] == "hardness"
    assert stats["masks"]["c"] == {"hardness": 1.125, "rank": 2, "images": 4, "kept": 3}
    assert "hardness of the mask" in (data / "out/resample_stats.svg").read_text()
    before = {path: path.stat().st_ctime_ns for path in (data / "out/resampled_img").iterdir()}
    gone = sorted(before)[3]
    gone.unlink()
    cli("resample", *options(data))  # goes on: only what is missing is placed
    assert gone.exists() and all(path.stat().st_ctime_ns == time for path, time in before.items() if path != gone)


def test_the_draw_is_the_images_own(data, cli):
    cli("resample", *options(data))
    cli("resample", *options(data, "--num-workers", 2, out="again"))
    assert kept(data) == kept(data, "again")
    others = [
        kept(data, f"seed_{seed}")
        for seed in (1, 2, 3)
        if cli("resample", *options(data, "--seed", seed, out=f"seed_{seed}"))
    ]
    assert any(names != kept(data) for names in others) and all(len(names) == 13 for names in others)
    for path in [*(data / "images").glob("b*"), *(data / "filtered").glob("b*")]:  # the other masks' draws stay
        path.unlink()
    cli("resample", *options(data, out="fewer"))
    assert numbers(kept(data, "fewer")) == {"d": 2, "c": 4, "b": 0, "a": 4}
    assert {name for name in kept(data, "fewer") if name[0] == "d"} == {name for name in kept(data) if name[0] == "d"}


def test_masks_with_different_numbers_of_images_keep_a_share_of_their_own(data, cli):
    for seed in (1, 2, 3):
        (data / f"images/a_seed_{seed}.jpg").unlink()
        (data / f"filtered/a_seed_{seed}.png").unlink()
    said = cli("resample", *options(data))
    assert numbers(kept(data)) == {"d": 2, "c": 3, "b": 4, "a": 1}
    assert "masks have 1 to 4 images, and each keeps a share of its own number" in said


def test_masks_and_losses_from_files_of_their_own(data, cli):
    cli("resample", *options(data))
    (data / "filtered/filter_stats.json").unlink()
    more = ["--real-loss", data / "real_loss.json", "--syn-mask-path", data / "masks"]
    cli("resample", *options(data, *more, out="own"))
    assert kept(data, "own") == kept(data)


def test_a_class_without_a_mean_loss_is_named(data, cli):
    put(data / "masks/c.png", (10, 10, 80))
    more = ["--real-loss", data / "real_loss.json", "--syn-mask-path", data / "masks"]
    assert "no real image showed forest" in cli("resample", *options(data, *more))
    assert json.loads((data / "out/resample_stats.json").read_text())["masks"]["c"]["hardness"] == 1.125


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


STATS = "filtered/filter_stats.json"
BAD = {
    "an option of the other rule": (None, ["--min-valid", 0.5], "--min-valid: belongs to --rule class"),
    "no statistics": (lambda d: (d / STATS).unlink(), [], "filter_stats.json: no such file; make it with filter.sh"),
    "no statistics for the masks": (
        lambda d: (d / STATS).unlink(),
        ["--real-loss", "real_loss.json"],
        "name the masks that the images were made of with --syn-mask-path",
    ),
    "other classes": (lambda d: change(d / STATS, lambda c: c["per_class"].pop("forest")), [], "no class forest in it"),
    "not a number": (
        lambda d: change(d / STATS, lambda c: c["per_class"]["forest"].update(mean_loss_real="1")),
        [],
        "field per_class.forest.mean_loss_real",
    ),
    "below 0": (
        lambda d: change(d / STATS, lambda c: c["per_class"]["forest"].update(mean_loss_real=-1)),
        [],
        "field per_class.forest.mean_loss_real",
    ),
    "no class seen": (
        lambda d: change(d / STATS, lambda c: [v.update(mean_loss_real=None) for v in c["per_class"].values()]),
        [],
        "no class has a",
    ),
    "an image unknown": (
        lambda d: change(d / STATS, lambda c: c["images"].pop("a_seed_1")),
        [],
        "field images: nothing about a_seed_1",
    ),
    "an image of other classes": (
        lambda d: change(d / STATS, lambda c: c["images"]["a_seed_1"].update(kept=[1])),
        [],
        "field images: not one number for each class of a_seed_1",
    ),
    "an edited number": (
        lambda d: change(d / "real_loss.json", lambda c: c.update(mean_loss=[1, 1, None])),
        ["--real-loss", "real_loss.json"],
        "checksum",
    ),
    "something else": (None, ["--real-loss", "classes.json"], "classes.json, field per_class: field required"),
    "a mask gone": (lambda d: (d / "masks/b.png").unlink(), ["--syn-mask-path", "masks"], "masks: no mask b.png"),
    "a mask damaged": (lambda d: (d / "masks/b.png").write_bytes(b"x"), ["--syn-mask-path", "masks"], "b.png: cannot"),
    "a mask of other ids": (
        lambda d: Image.new("L", (9, 9), 7).save(d / "masks/b.png"),
        ["--syn-mask-path", "masks"],
        "class ids 7 are not",
    ),
    "a seed below 0": (None, ["--seed", -1], "--seed: -1: write a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_work(data, cli, monkeypatch, case):
    edit, more, message = BAD[case]
    if edit:
        edit(data)
    monkeypatch.chdir(data)
    assert message in cli.refused("resample", *options(data, *more))
    assert not list(data.glob("out/*/*"))


def test_the_other_rule_refuses_this_ones_options(data, cli):
    line = cli.refused("resample", *[*options(data)[:-2], "--seed", 1])
    assert "--seed: belongs to --rule hardness, this is --rule class" in line


def test_the_figure_shows_hardness(tmp_path):
    per_class = {
        name: {"inaccurate": False, "share_before": 0.5, "share_after": 0.5, "images_before": 1, "images_after": 1}
        for name in CLASSES[:2]
    }
    masks = {"a": {"hardness": 0.5, "images": 4, "kept": 2}, "b": {"hardness": 1.5, "images": 4, "kept": 4}}
    resample_figure(tmp_path / "figure.png", {"kept": 6, "images": 8, "per_class": per_class, "masks": masks})
    assert Image.open(tmp_path / "figure.png").width > 2000 and not plt.get_fignums()

"""The allotment of images to masks and references: counts, matches, guards, by rule and by command."""

import json

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from post_processing.allot_rule import (
    class_shares,
    images_of_masks,
    mix_distance,
    share_out,
    style,
    style_distance,
)
from scripts.allot import main


@pytest.mark.parametrize(("masks", "total", "at_least"), [(4, 10, 0), (4, 10, 1), (7, 100, 3), (9, 9, 1), (9, 4, 0)])
def test_counts_sum_to_the_total_and_follow_the_ranks(masks, total, at_least):
    ranks = np.random.default_rng(masks).permutation(masks) + 1
    counts = images_of_masks(ranks, total, at_least)
    assert counts.sum() == total and counts.min() >= at_least
    assert (np.diff(counts[np.argsort(ranks)]) >= 0).all()
    exact = at_least + (total - at_least * masks) * ranks / ranks.sum()
    assert (np.abs(counts - exact) < 1).all()
    assert images_of_masks(np.ones(4, dtype=int), 10).tolist() in ([3, 3, 2, 2], [2, 2, 3, 3])


def test_distances_in_closed_form():
    shares = class_shares(np.array([[1, 3], [0, 5], [0, 0]]))
    assert shares.tolist() == [[0.25, 0.75], [0, 1], [0, 0]]
    assert mix_distance(shares[0], shares).tolist() == [0, 0.25, 0.5]
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, :, 0] = 255
    assert style(image).tolist() == [0.5, 0, 0, 0.5, 0, 0]
    assert style_distance(style(image), np.stack([style(image), np.zeros(6)])) == pytest.approx([0, (0.5 / 6) ** 0.5])


def test_images_are_shared_among_the_best_that_are_left():
    left = np.array([3, 1, 9])
    assert share_out([2, 0, 1], left, 5, 2) == {2: 3, 0: 2} and left.tolist() == [1, 1, 6]
    assert share_out([1, 0, 2], left, 4, 2) == {1: 1, 0: 1, 2: 2}  # the two best are used up
    assert share_out([2], left, 0, 2) == {}


@pytest.fixture
def folder(tmp_path):
    """Four masks of 2 classes with images, from all of class 0 to all of class 1; references of two kinds."""
    for name in ("label", "img", "ref", "ref_label", "test"):
        (tmp_path / name).mkdir()
    lines = []
    for i in range(4):
        mask = np.zeros((8, 8), np.uint8)
        mask[:, : (0, 2, 6, 8)[i]] = 1
        Image.fromarray(mask).save(tmp_path / f"label/m{i}.png")
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(tmp_path / f"img/m{i}.png")
        lines.append(json.dumps({"source": f"label/m{i}.png", "target": f"img/m{i}.png", "prompt": f"mask {i}"}))
    (tmp_path / "items.json").write_text("\n".join(lines))
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 30 * i, np.uint8)).save(tmp_path / f"ref/r{i}.png")
        Image.fromarray(np.full((8, 8), i % 2, np.uint8)).save(tmp_path / f"ref_label/r{i}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["soil", "water"]}))
    scores = {"classes": {"soil": {"IoU": 0.9}, "water": {"IoU": 0.4}}}
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "test/t.jpg", quality=100)  # r3's pixels
    return tmp_path


@pytest.fixture
def words(folder):
    def build(*more, out="out.json"):
        given = {"masks": "items.json", "references": "ref", "classes": "classes.json", "out": out}
        named = [word for name, value in given.items() for word in (f"--{name}", str(folder / value))]
        return ["--data-root", str(folder), *named, "--total", "20", *map(str, more)]

    return build


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_hard_masks_come_more_often_after_references_that_show_the_same(folder, words, capsys):
    known = ("--metrics", folder / "metrics.json", "--reference-masks", folder / "ref_label", "--first-seed", 3)
    main(words(*known))
    assert "20 images of 4 masks (3 to 7 each)" in capsys.readouterr().out
    lines, report = lines_of(folder / "out.json"), json.loads((folder / "out_report.json").read_text())
    seeds = {f"label/m{i}.png": [] for i in range(4)}
    for line in lines:
        seeds[line["source"]] += line["seeds"]
        assert line["prompt"] == f"mask {line['source'][7]}"
    # water, the hard class, fills m3: ranks 1 to 4, and of the 16 beyond one each 1.6, 3.2, 4.8, 6.4
    counts = [3, 4, 6, 7]
    assert [sorted(found) for found in seeds.values()] == [list(range(3, 3 + count)) for count in counts]
    assert [entry["images"] for entry in report["masks"].values()] == counts and sum(counts) == 20
    assert [entry["hardness"] for entry in report["masks"].values()] == [0.1, 0.225, 0.475, 0.6]
    used = report["references"]
    assert sum(used.values()) == 20 and max(used.values()) <= -(-2 * 20 // 6)
    hardest = report["masks"]["label/m3.png"]["references"]  # all water, and of gray level 180
    assert hardest.keys() == {"ref/r3.png", "ref/r5.png"} and {one["mix"] for one in hardest.values()} == {0}
    main(words(*known, out="again.json"))
    assert (folder / "again.json").read_bytes() == (folder / "out.json").read_bytes()


def test_without_knowledge_the_seed_decides(folder, words):
    chosen = {}
    for seed in (0, 1):
        main(words("--style-weight", 0, "--seed", seed, out=f"{seed}.json"))
        lines = lines_of(folder / f"{seed}.json")
        chosen[seed] = [(line["source"], line["ref_image"]) for line in lines]
        counts = [sum(len(line["seeds"]) for line in lines if f"m{i}" in line["source"]) for i in range(4)]
        assert counts == [5] * 4
    assert chosen[0] != chosen[1]


def test_a_masks_own_image_is_its_last_reference(folder, words):
    main(words("--references", folder / "img"))
    pairs = {(line["source"][-6:], line["ref_image"][-6:]) for line in lines_of(folder / "out.json")}
    assert len(pairs) == 8 and not any(mask == image for mask, image in pairs)


def test_a_reference_with_a_test_images_pixels_is_refused(folder, words):
    guard = ("--not-among", folder / "test")
    with pytest.raises(InputError, match=r"r3\.png: has the pixels of .*t\.jpg, which is a test image"):
        main(words(*guard))
    main(words(*guard, "--skip-invalid"))
    assert "ref/r3.png" not in {line["ref_image"] for line in lines_of(folder / "out.json")}


def test_what_does_not_go_together_is_refused(folder, words):
    for more, says in (
        (("--total", 3), "less than 1 of each of 4 masks"),
        (("--most-per-reference", 3), "6 references give 18 images, not 20"),
        (("--metrics", "a", "--real-loss", "b"), "give one of them"),
        (("--references", folder.parent), "outside|leaves"),
    ):
        if "--references" in more:
            Image.new("RGB", (8, 8)).save(folder.parent / "outside.png")
            (more[1] / "outside").mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(more[1] / "outside" / "a.png")
            more = ("--references", more[1] / "outside")
        with pytest.raises(InputError, match=says):
            main(words(*more))

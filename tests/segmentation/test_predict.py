"""Masks for images that have none."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.classes import load_class_table
from common.errors import InputError
from common.images import read_mask
from common.pairing import refuse_doubt
from evaluation.runs import check_sure
from segmentation.inference import open_segmentor

TTA = """
tta_pipeline = [dict(type="LoadImageFromFile"), dict(type="TestTimeAug", transforms=[
    [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
    [dict(type="LoadAnnotations")], [dict(type="PackSegInputs")]])]
"""


@pytest.fixture
def chain(make_chain):
    chain = make_chain()
    (chain.root / "mine").mkdir()
    chain.config = chain.config.rename(chain.root / "mine/config.py")
    return chain


def logits(chain, image):
    x = (np.array(Image.open(image), dtype=float) - [120, 110, 100]) / [60, 55, 50]
    return x @ chain.weight.astype(float).T + chain.bias


def options(chain, out="out", images="img_test"):
    return [
        "predict",
        chain.config,
        "--load-from",
        chain.weights,
        "--images",
        chain.root / images,
        "--out",
        chain.root / out,
        "--num-workers",
        0,
    ]


def test_masks_overlays_and_probabilities(chain, cli):
    out = chain.root / "out"
    said = cli("segmentor", *options(chain), "--overlay", "--probabilities", "--batch-size", 2)
    assert "3 masks in" in said
    for image in sorted((chain.root / "img_test").iterdir()):
        expected = logits(chain, image)
        found = read_mask(out / "masks" / image.name)
        assert (found == expected.argmax(-1)).mean() > 0.999
        probabilities = np.load(out / "probabilities" / f"{image.stem}.npy")
        exact = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
        assert probabilities.dtype == np.float16 and np.abs(probabilities.transpose(1, 2, 0) - exact).max() < 2e-3
        assert Image.open(out / "overlays" / image.name).size == Image.open(image).size
    assert json.loads((out / "classes.json").read_text())["classes"][2] == "name 2"
    times = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    (out / "masks/r0.png").unlink()
    image = chain.root / "img_test/r1.png"
    Image.fromarray(np.array(Image.open(image))[::-1]).save(image)
    assert "1 of 3 images are done" in cli("segmentor", *options(chain), "--overlay", "--probabilities")
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"r0.png", "r1.png"}
    assert (read_mask(out / "masks/r1.png") == logits(chain, image).argmax(-1)).mean() > 0.999
    weights = torch.load(chain.weights)
    torch.save({"state_dict": {key: value + 1 for key, value in weights["state_dict"].items()}}, chain.weights)
    assert "another checkpoint" in cli.refused("segmentor", *options(chain))


def test_views_and_windows_of_a_pointwise_segmentor_change_nothing(chain, cli):
    cli("segmentor", *options(chain), "--probabilities")
    cli("segmentor", *options(chain, "slid"), "--probabilities", "--slide", 16, 10)
    chain.config.write_text(chain.config.read_text() + TTA)
    cli("segmentor", *options(chain, "views"), "--probabilities", "--tta", "--batch-size", 2)
    for plain in (chain.root / "out/probabilities").iterdir():
        for other in ("slid", "views"):
            assert np.abs(np.load(plain) - np.load(chain.root / other / "probabilities" / plain.name)).max() < 2e-3


def test_built_in_views(chain, cli):
    image = chain.root / "flat.png"
    Image.fromarray(np.full((20, 30, 3), (10, 200, 90), np.uint8)).save(image)
    cli("segmentor", *options(chain, images="flat.png"), "--tta")
    assert (read_mask(chain.root / "out/masks/flat.png") == logits(chain, image).argmax(-1)).all()


def test_how_much_is_sure_is_said(chain, cli):
    """By class, of all images, of a run that goes on as well."""
    out = chain.root / "out"
    probabilities = []
    for path in sorted((chain.root / "img_test").iterdir()):
        exact = np.exp(logits(chain, path))
        probabilities.append((exact / exact.sum(-1, keepdims=True)).reshape(-1, 5))
    probability = np.concatenate(probabilities)
    sure = float(np.median(probability.max(-1)))
    cli("segmentor", *options(chain), "--sure", sure)
    (out / "masks/r0.png").unlink()
    said = cli("segmentor", *options(chain), "--sure", sure)
    told = json.loads((out / "sure.json").read_text())
    expected = np.bincount(probability.argmax(-1)[probability.max(-1) >= sure], minlength=5)
    assert told["pixels"] == len(probability) and list(told["sure"]) == [f"name {i}" for i in range(5)]
    assert np.abs(np.array(list(told["sure"].values())) - expected).max() <= 2
    assert f"sure of {100 * sum(told['sure'].values()) / len(probability):.2g} % of the pixels (name " in said
    said = cli("segmentor", *options(chain, "none"), "--sure", 1)
    assert "sure of 0 % of the pixels (none of name 0, name 1, name 2, name 3, name 4); lower --sure" in said
    with pytest.raises(InputError, match=r"the teacher is sure of no pixel, .* and lower "):
        check_sure(chain.root / "none")
    check_sure(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--images", "nowhere"], "no such folder"),
        (["--images", "classes.json"], "is none of"),
        (["--out", "img_test/x"], "lies inside"),
        (["--slide", "8", "9"], "leaves gaps"),
        (["--load-from", "none.pth"], "no such file"),
        (["--device", "tpu"], "--device tpu"),
    ],
)
def test_refusals(chain, cli, monkeypatch, change, message):
    monkeypatch.chdir(chain.root)
    assert message in cli.refused("segmentor", *options(chain), *change)
    assert not (chain.root / "out").exists()


def test_the_word_comes_first(chain, cli):
    assert "first word" in cli.refused("segmentor", "--seed", 1, "predict", chain.config)


def test_a_damaged_image_is_named_before_the_work(chain, cli):
    image = chain.root / "img_test/r1.png"
    image.write_bytes(image.read_bytes()[:60])
    assert "r1.png: cannot be read" in cli.refused("segmentor", *options(chain))
    assert not (chain.root / "out/masks").exists()


def test_views_and_confusion_in_tests(chain, cli):
    chain.config.write_text(chain.config.read_text() + TTA)
    given = ["test", chain.config, "--load-from", chain.weights, "--work-dir", chain.root / "work"]
    cli("segmentor", *given, "--confusion")
    plain = json.loads((chain.root / "work/metrics.json").read_text())
    cli("segmentor", *given, "--tta", "--out", chain.root / "work/views.json")
    assert json.loads((chain.root / "work/views.json").read_text()) == plain
    table = json.loads((chain.root / "work/metrics_confusion.json").read_text())
    matrix = np.zeros((5, 5), int)
    for path in (chain.root / "label_test").iterdir():
        truth = np.array(Image.open(path))
        found = logits(chain, chain.root / "img_test" / path.name).argmax(-1)
        np.add.at(matrix, (truth[truth != 255], found[truth != 255]), 1)
    assert np.abs(np.array(table["pixels"]) - matrix).sum() <= 4  # a tie of two classes
    assert plain["OA"] == pytest.approx(np.trace(table["pixels"]) / matrix.sum())
    picture = (chain.root / "work/metrics_confusion.svg").read_text()
    assert "predicted class" in picture or "<path" in picture


def test_predicted_masks_are_masks_of_their_table(make_chain, cli):
    """LoveDA's 1..7, as filter.sh writes them: what the table, and the folder's own one, read again."""
    chain = make_chain(7)
    common = ["--load-from", chain.weights, "--images", chain.root / "img_test", "--num-workers", 0]
    given = {"LoveDA": range(1, 8), "LoveDA:ids": range(7)}
    read = {}
    for table, ids in given.items():
        out = chain.root / table.replace(":", "_")
        cli("segmentor", "predict", chain.config, *common, "--out", out, "--classes", table)
        written = {path.name: read_mask(path) for path in sorted((out / "masks").iterdir())}
        found = {int(id_) for mask in written.values() for id_ in np.unique(mask)}
        assert found <= set(ids) and max(found) == max(ids)
        paths = sorted((out / "masks").iterdir())
        for again in (table, str(out / "classes.json")):
            labels = load_class_table(again).labels
            refuse_doubt(labels, paths, "here")
            read[table, again] = {path.name: labels.read(path).tolist() for path in paths}
            for name, mask in written.items():
                assert (labels.to_file(labels.read(out / "masks" / name)) == mask).all()
    assert all(found == read["LoveDA", "LoveDA"] for found in read.values()) and len(read) == 4
    cli(
        "resample",
        "--filtered-mask-path",
        chain.root / "LoveDA" / "masks",
        "--syn-img-path",
        chain.root / "img_test",
        "--out-dir",
        chain.root / "resampled",
        "--classes",
        "LoveDA",
    )


@pytest.mark.parametrize("ids", [{}, {"mask_values": [1, 2, 3, 4, 9], "mask_ignore": [0]}])
def test_pixels_to_ignore_have_the_id_that_the_class_table_ignores(chain, cli, ids):
    chain.table.write_text(json.dumps({**json.loads(chain.table.read_text()), "ignore_index": 200, **ids}))
    cli("segmentor", *options(chain), "--sure", 1)
    out = chain.root / "out"
    assert all((read_mask(path) == 200).all() for path in (out / "masks").iterdir())
    given, written = (load_class_table(str(path)).labels.table for path in (chain.table, out / "classes.json"))
    assert written.tolist() == given.tolist()
    rule = open_segmentor(chain.config, chain.weights, device="cpu").rule
    assert rule.ids()[255] == 200  # of pixels without data, too

"""Masks as they are published: 16 bits, LoveDA's 1..7, colors; every command reads the same in them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cldm.build import create_model
from common.classes import load_class_table
from common.images import ImageError
from common.pairing import refuse_doubt
from gss.palette import palette_labels
from ldm.checkpoint import save_state_dict
from tests.conftest import SMALL

LOVEDA = load_class_table("LoveDA")


def sixteen_bits(ids):
    return Image.fromarray(ids.astype(np.uint16))


def from_one(ids):
    return Image.fromarray(np.where(ids == 255, 0, ids + 1).astype(np.uint8))


def colors(ids):
    return Image.fromarray(np.vstack([LOVEDA.palette, np.zeros((249, 3), np.uint8)])[ids])


WAYS = {"16 bits": (sixteen_bits, "LoveDA:ids"), "from 1": (from_one, "LoveDA"), "colors": (colors, "LoveDA")}


def rewrite(folder, way):
    for path in sorted(folder.iterdir()):
        way(np.array(Image.open(path))).save(path)


@pytest.fixture(scope="module")
def seen():
    """What the ways have shown so far: all must show the same."""
    return {}


@pytest.mark.parametrize("name", WAYS)
def test_segmentor_filter_resample_evaluate(cli, make_chain, name, seen):
    way, table = WAYS[name]
    chain = make_chain(7)
    chain.config.write_text(chain.config.read_text().replace(repr(str(chain.table)), repr(table)))
    for split in ("train", "test"):
        rewrite(chain.root / f"label_{split}", way)
    out = cli(
        "segmentor",
        "test",
        chain.config,
        "--load-from",
        chain.weights,
        "--work-dir",
        chain.root / "work",
        "--trust-config",
    )
    pairs = ["--syn-img-path", chain.root / "syn", "--syn-mask-path", chain.root / "label_train"]
    filtered = chain.root / "filtered"
    # the published line of filter.sh
    cli(
        "filter",
        chain.config,
        chain.weights,
        "--real-img-path",
        chain.root / "img_train",
        "--real-mask-path",
        chain.root / "label_train",
        *pairs,
        "--filtered-mask-path",
        filtered,
        "--batch_size",
        "8",
        "--device",
        "cpu",
        "--save-loss",
        chain.root / "loss",
    )
    cli(
        "filter",
        "--from-loss",
        chain.root / "loss",
        "--syn-mask-path",
        chain.root / "label_train",
        "--filtered-mask-path",
        chain.root / "again",
    )
    cli(
        "resample",
        "--filtered-mask-path",
        filtered,
        "--syn-img-path",
        chain.root / "syn",
        "--out-dir",
        chain.root / "resampled",
        "--classes",
        table,
        "--min-valid",
        "0.6",
    )
    cli(
        "evaluate_samples",
        chain.config,
        chain.weights,
        "--real-img-path",
        chain.root / "img_test",
        "--real-label-path",
        chain.root / "label_test",
        *pairs,
        "--train-img-path",
        chain.root / "img_train",
        "--out-dir",
        chain.root / "evaluation",
        "--device",
        "cpu",
    )
    labels = load_class_table(table).labels
    masks = {path.name: labels.read(path).tolist() for path in sorted(filtered.glob("*.png"))}
    assert masks == {path.name: labels.read(path).tolist() for path in sorted((chain.root / "again").glob("*.png"))}
    found = {
        "metrics": json.loads((chain.root / "work" / "metrics.json").read_text())["classes"],
        "masks": masks,
        "kept": sorted(path.name for path in (chain.root / "resampled" / "resampled_label").iterdir()),
    }
    assert len(masks) == 6 and found == seen.setdefault("segmentors", found), out


@pytest.fixture(scope="module")
def ckpt_of_seven(tmp_path_factory):
    """Weights of the small model with LoveDA's classes."""
    path = tmp_path_factory.mktemp("ckpt") / "small.safetensors"
    save_state_dict(create_model(SMALL, classes="LoveDA").state_dict(), path)
    return path


@pytest.mark.parametrize("name", WAYS)
def test_train_inference_palettes(cli, scenes, ckpt_of_seven, tmp_path, name, seen):
    """The scenes' five classes are the first of LoveDA's, and a seventh is put in."""
    way, table = WAYS[name]
    shutil.copytree(scenes, tmp_path / "data")
    for folder in ("label_train", "label_test"):
        for path in sorted((tmp_path / "data" / folder).iterdir()):
            ids = np.array(Image.open(path))
            ids[0, :3] = 6, 255, 0
            way(ids).save(path)
    data = ["--data_root", tmp_path / "data", "--gpus", "cpu"]
    out = cli(
        "train",
        "--base",
        SMALL,
        "--config_model",
        SMALL,
        "-n",
        "run",
        "-l",
        tmp_path,
        *data,
        "--dry_run",
        "--train_txt_file",
        "train_set_items.json",
        "--val_txt_file",
        "test_set_items.json",
        "--allow_mismatch",
        "all",
        f"model.params.classes={table}",
    )
    assert "dry run: everything is in place" in out
    out = cli(
        "inference",
        "--config",
        SMALL,
        "--ckpt",
        ckpt_of_seven,
        "--classes",
        table,
        "--data_root",
        tmp_path / "data",
        "--train_txt_file",
        tmp_path / "data" / "inference_set_items.json",
        "--outdir",
        tmp_path / "images",
        "--gpus",
        "cpu",
        "--dry_run",
    )
    assert "8 to make" in out and not (tmp_path / "images").exists()
    palette = tmp_path / "palette.json"
    cli(
        "posterior_learning",
        "--classes",
        table,
        "--masks",
        tmp_path / "data" / "label_train",
        "--method",
        "spread",
        "--out",
        palette,
    )
    made = load_class_table(str(palette))
    mask = sorted((tmp_path / "data" / "label_train").iterdir())[0]
    if name != "colors":  # a learned palette's colors are others than the data set's
        assert (made.labels.read(mask) == load_class_table(table).labels.read(mask)).all()
    ids = load_class_table(table).labels.read(mask).tolist()
    assert ids[0][:3] == [6, 255, 0] and ids == seen.setdefault("scenes", ids)


@pytest.mark.parametrize(("palette", "way"), [("loveda:ids", sixteen_bits), ("LoveDA:from1", from_one)])
def test_train_dvae_reads_the_same(cli, tmp_path, palette, way):
    (tmp_path / "masks").mkdir()
    ids = np.arange(7, dtype=np.uint8).repeat(16 * 112 // 7).reshape(16, 112)
    way(ids).save(tmp_path / "masks" / "a.png")
    assert (palette_labels(palette, 7).read(tmp_path / "masks" / "a.png") == ids).all()
    cli(
        "train_dvae",
        "--masks",
        tmp_path / "masks",
        "--palette",
        palette,
        "--out",
        tmp_path / "d.safetensors",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--crop-size",
        "8",
        "--batch-size",
        "1",
        "--n-hid",
        "4",
        "--device",
        "cpu",
    )
    assert (tmp_path / "d.safetensors").is_file()


def test_what_is_said(cli, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("common.said._said", set())
    masks = tmp_path / "masks"
    masks.mkdir()
    ids = np.arange(7, dtype=np.uint8).repeat(2).reshape(2, 7)
    from_one(ids).save(masks / "a.png")
    out = cli(
        "posterior_learning",
        "--classes",
        "LoveDA",
        "--masks",
        masks,
        "--method",
        "spread",
        "--out",
        tmp_path / "p.json",
    )
    assert "classes LoveDA: 1..7 in masks are its 7 classes, 0 no data; write LoveDA:ids if masks hold 0..6" in out


@pytest.mark.parametrize(
    ("table", "ids", "reason"),
    [
        ("GID", [[1, 24]], "write GID:from1"),
        ("GID", [[[200, 0, 0], [1, 2, 3]]], "has colors that the class table GID does not have: (1, 2, 3)"),
        ("GID", [[[0, 0, 0], [0, 0, 0]]], "whose values are ids and colors of GID alike"),
        ("LoveDA", [[1, 8]], "class ids 8 are not in 1..7 or 0, 255 (ignore)"),
        ("FUSU", [[[8, 154, 230], [8, 154, 231]]], "(8, 154, 231)"),
    ],
)
def test_never_guessed(tmp_path, table, ids, reason):
    Image.fromarray(np.array(ids, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError) as error:
        load_class_table(table).labels.read(tmp_path / "a.png")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("table", "ids", "wanted"),
    [
        ("GID", [[2, 14, 17, 20, 255]], [[2, 14, 17, 20, 255]]),
        ("GID:from1", [[1, 24, 0]], [[0, 23, 255]]),
        ("FUSU:from1", [[17, 0]], [[16, 255]]),
        ("LoveDA:ids", [[0, 6, 255]], [[0, 6, 255]]),
        ("gid", [[[250, 250, 250], [250, 250, 250]]], [[15, 15]]),  # snow: no ids, so colors
        ("GID", [[[200, 150, 0], [0, 0, 0]]], [[23, 255]]),
        ("FUSU", [[[8, 154, 230], [255, 255, 255]]], [[1, 255]]),
        ("FUSU", [[[3, 3, 3], [16, 16, 16]]], [[3, 16]]),  # three equal channels of ids
    ],
)
def test_read_as_the_table_says(tmp_path, table, ids, wanted):
    array = np.array(ids)
    Image.fromarray(array.astype(np.uint8 if array.ndim == 3 else np.uint16)).save(tmp_path / "a.png")
    assert load_class_table(table).labels.read(tmp_path / "a.png").tolist() == wanted


def test_a_set_that_may_be_counted_from_0_is_refused(cli, make_chain):
    """0 and never 7: LoveDA's masks of 0..6, or without agriculture."""
    chain = make_chain(5)
    reason = cli.refused(
        "resample",
        "--filtered-mask-path",
        chain.root / "label_train",
        "--syn-img-path",
        chain.root / "img_train",
        "--out-dir",
        chain.root / "out",
        "--classes",
        "LoveDA",
    )
    assert "Write LoveDA:from1, or LoveDA:ids, as the class table" in reason
    paths = sorted((chain.root / "label_train").iterdir())
    for decided in ("LoveDA:from1", "LoveDA:ids"):
        refuse_doubt(load_class_table(decided).labels, paths, "here")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mask_values": [1]}, "field mask_values: must be a list of 2 ids"),
        ({"mask_values": [1, 1]}, "field mask_values: 1 stands for two classes"),
        ({"mask_values": [1, 2], "mask_ignore": [2]}, "field mask_values: 2 stands for two classes"),
        ({"mask_values": [1, 300]}, "field mask_values: must be a list of 2 ids"),
        ({"mask_values": 3}, "field mask_values: must be a list"),
        ({"mask_ignore": [3]}, "field mask_ignore: goes with mask_values"),
        ({"mask_colors": [[0, 0, 0]]}, "field mask_colors: must be a list of 2 colors"),
        ({"mask_colors": [[0, 0, 0], [0, 0, 0]]}, "field mask_colors: [0, 0, 0] stands for two classes"),
        ({"mask_ignore_colors": [[0, 0, 0]]}, "field mask_ignore_colors: goes with mask_colors"),
        ({"mask_value": [1, 2]}, "unknown field mask_value; write mask_values"),
    ],
)
def test_a_table_that_cannot_be_is_refused(cli, tmp_path, fields, reason):
    (tmp_path / "t.json").write_text(json.dumps({"classes": ["a", "b"], **fields}))
    line = cli.refused(
        "resample",
        "--filtered-mask-path",
        tmp_path / "a",
        "--syn-img-path",
        tmp_path / "b",
        "--out-dir",
        tmp_path / "out",
        "--classes",
        tmp_path / "t.json",
    )
    assert reason in line and "t.json" in line

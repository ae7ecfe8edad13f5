"""What a segmentor's config decides holds wherever that segmentor is used."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.segmentation.chain import evaluate_options, filter_options, loss_options
from tests.segmentation.test_predict import TTA


def evaluate(cli, chain, out="eval", *more):
    cli("evaluate_samples", *evaluate_options(chain, *more, out=out))
    return json.loads((chain.root / out / "evaluation.json").read_text())["real"]


def metrics_of(cli, chain, *more):
    cli(
        "segmentor",
        "test",
        chain.config,
        "--load-from",
        chain.weights,
        "--work-dir",
        chain.root / "work",
        "--out",
        chain.root / "metrics.json",
        *more,
    )
    return json.loads((chain.root / "metrics.json").read_text())


def run_filter(cli, chain, *more, out="out"):
    cli("filter", *filter_options(chain, *more, out=out))


def masks(folder):
    return {path.stem: np.array(Image.open(path)) for path in sorted(folder.glob("[!.]*.png"))}


def change(chain, old, new):
    text = chain.config.read_text()
    assert old in text
    chain.config.write_text(text.replace(old, new))


def reduce_zero(chain):
    change(chain, 'type="MaskDataset",', 'type="MaskDataset", reduce_zero_label=True,')


def ignore_zero(chain):
    for path in chain.root.glob("label_*/*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 255, 0, ids).astype(np.uint8)).save(path)
    chain.table.write_text(json.dumps({**json.loads(chain.table.read_text()), "ignore_index": 0}))


def other_image_loading(chain):
    change(
        chain,
        'dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")',
        'dict(type="LoadImageFromFile", to_float32=True), dict(type="Resize", scale=(50, 40)), '
        'dict(type="LoadAnnotations"), dict(type="PackSegInputs")',
    )


def a_pipeline_of_that_name(chain):
    chain.config.write_text(
        chain.config.read_text() + '\ntest_pipeline = [dict(type="LoadImageFromFile"), '
        'dict(type="PhotoMetricDistortion"), dict(type="PackSegInputs")]\n'
    )


def scores_ignore_a_class(chain):
    change(chain, 'test_evaluator = dict(type="IoUMetric")', 'test_evaluator = dict(type="IoUMetric", ignore_index=1)')


def test_a_class_that_losses_ignore_is_left_alone(cli, make_chain):
    chain = make_chain()
    change(chain, 'type="FCNHead",', 'type="FCNHead", ignore_index=1,')
    run_filter(cli, chain, "--tolerance-margin", 0.5)
    stats = json.loads((chain.root / "out/filter_stats.json").read_text())["per_class"]
    assert stats["name 1"]["real_pixels"] == stats["name 1"]["dropped"] == 0 < stats["name 2"]["dropped"]
    for name, ids in masks(chain.root / "out").items():
        before = np.array(Image.open(chain.root / f"label_train/{name.split('_seed_')[0]}.png"))
        assert ((ids == 1) == (before == 1)).all()


def slide(chain):
    change(chain, 'test_cfg=dict(mode="whole")', 'test_cfg=dict(mode="slide", crop_size=(16, 16), stride=(9, 9))')


DECISIONS = [reduce_zero, ignore_zero, other_image_loading, a_pipeline_of_that_name, scores_ignore_a_class, slide]


@pytest.mark.parametrize("decision", DECISIONS)
def test_evaluation_gives_the_numbers_of_the_test(cli, make_chain, decision):
    chain = make_chain()
    if decision is reduce_zero:
        shift_ids(chain)
    decision(chain)
    real, metrics = evaluate(cli, chain), metrics_of(cli, chain)
    assert {key: real[key] for key in ("OA", "mIoU", "mAcc", "classes")} == {
        key: metrics[key] for key in ("OA", "mIoU", "mAcc", "classes")
    }


def shift_ids(chain):
    """Masks as ADE20K has them: class c is id c + 1, and 0 belongs to none."""
    for path in chain.root.glob("label_*/*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 255, 0, ids + 1).astype(np.uint8)).save(path)


def test_reduced_labels_are_filtered_and_resampled_as_plain_ones(cli, make_chain):
    chain = make_chain()
    run_filter(cli, chain, "--save-loss", chain.root / "plain_loss", out="plain")
    shift_ids(chain)
    reduce_zero(chain)
    run_filter(cli, chain, "--save-loss", chain.root / "loss")
    plain, reduced = masks(chain.root / "plain"), masks(chain.root / "out")
    for name, ids in plain.items():  # in the files' own ids: what was 0 stays 0, what was dropped is 255
        before = np.array(Image.open(chain.root / f"label_train/{name.split('_seed_')[0]}.png"))
        kept = np.where(ids == 255, np.where(before == 0, 0, 255), ids + 1)
        np.testing.assert_array_equal(reduced[name], kept)
    cli("filter", *loss_options(chain, "--tolerance-margin", 100))
    assert all(255 not in ids for ids in masks(chain.root / "again").values())
    counts = {}
    for name in ("plain", "out"):
        cli(
            "resample",
            "--filtered-mask-path",
            chain.root / name,
            "--syn-img-path",
            chain.root / "syn",
            "--out-dir",
            chain.root / f"{name}_kept",
            "--classes",
            chain.table,
            "--min-valid",
            0.3,
        )
        counts[name] = json.loads((chain.root / f"{name}_kept/resample_stats.json").read_text())
        del counts[name]["options"]
    assert counts["plain"] == counts["out"]


def test_dropped_pixels_get_the_id_that_the_class_table_ignores(cli, make_chain):
    chain = make_chain()
    chain.table.write_text(json.dumps({**json.loads(chain.table.read_text()), "ignore_index": 200}))
    for path in chain.root.glob("label_*/*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 255, 200, ids).astype(np.uint8)).save(path)
    run_filter(cli, chain)
    assert {int(value) for ids in masks(chain.root / "out").values() for value in np.unique(ids)} <= {*range(5), 200}


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_a_head_of_one_channel_decides_by_its_threshold(cli, make_chain, threshold):
    chain = make_chain(2)
    change(chain, "num_classes=2,", f"num_classes=2, out_channels=1, threshold={threshold},")
    change(chain, 'type="CrossEntropyLoss"', 'type="CrossEntropyLoss", use_sigmoid=True')
    torch.save(
        {
            "state_dict": {
                "decode_head.conv_seg.weight": torch.tensor(chain.weight[:1])[..., None, None],
                "decode_head.conv_seg.bias": torch.zeros(1),
            }
        },
        chain.weights,
    )
    real, metrics = evaluate(cli, chain), metrics_of(cli, chain)
    assert real["OA"] == metrics["OA"] and real["classes"] == metrics["classes"]
    text = chain.config.read_text()
    chain.config = chain.root / "views" / chain.config.name
    chain.config.parent.mkdir()
    chain.config.write_text(text + TTA)
    views = metrics_of(cli, chain, "--tta")  # of single pixels: they change nothing
    assert views["classes"] == metrics["classes"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'dict(type="LoadAnnotations")',
            'dict(type="LoadAnnotations", reduce_zero_label=True)',
            "say the same in both",
        ),
        (
            'type="PackSegInputs")]))',
            'type="PackSegInputs"), dict(type="TestTimeAug", transforms=[])]))',
            "TestTimeAug",
        ),
        ('dict(type="LoadAnnotations"), dict(type="PackSegInputs")]))', 'dict(type="NoSuchStep")]))', "NoSuchStep"),
    ],
)
def test_a_test_that_cannot_be_followed_is_refused(cli, make_chain, old, new, message):
    chain = make_chain()
    change(chain, old, new)
    assert message in cli.refused("filter", *filter_options(chain))

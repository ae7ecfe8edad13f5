"""What becomes of pixels above the limit: 255 as published, another label, or a weight."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.segmentation.chain import numpy_loss, numpy_rule
from tests.segmentation.test_filter_command import arguments, assert_same, masks, run


def test_pixels_are_relabeled_where_an_ensemble_is_sure(make_chain, capsys):
    """By the mean of two segmentors' probabilities, in numpy; a second start changes nothing, others are refused."""
    chain = make_chain()
    other = torch.load(chain.weights)
    other["state_dict"] = {name: -0.5 * value for name, value in other["state_dict"].items()}
    torch.save(other, chain.root / "other.pth")
    sure = 0.47
    more = {"treatment": "relabel", "sure": sure, "ensemble": chain.root / "other.pth"}
    assert run(arguments(chain, **more)) == 0
    expected, relabeled = {}, np.zeros(5, int)
    for name, kept in numpy_rule(chain, 1.25)[0].items():
        image = chain.root / "syn" / f"{name}.png"
        mask = np.array(Image.open(chain.root / "label_train" / f"{name.split('_seed_')[0]}.png"))
        x = (np.array(Image.open(image), dtype=np.float64) - [120, 110, 100]) / [60, 55, 50]
        logits = x @ chain.weight.astype(np.float64).T + chain.bias
        both = [np.exp(scale * logits) for scale in (1, -0.5)]
        p = sum(one / one.sum(-1, keepdims=True) for one in both) / 2
        moved = (kept == 255) & (mask != 255) & (p.max(-1) >= sure)
        assert np.abs(p.max(-1) - sure).min() > 1e-6
        expected[name] = np.where(moved, p.argmax(-1), kept).astype(np.uint8)
        relabeled += np.bincount(expected[name][moved], minlength=5)
    assert_same(masks(chain.root / "out"), expected)
    stats = json.loads((chain.root / "out/filter_stats.json").read_text())
    assert [entry["relabeled"] for entry in stats["per_class"].values()] == relabeled.tolist() and relabeled.sum() > 50
    assert " % relabeled; " in capsys.readouterr().out
    assert "relabeled or dropped" in (chain.root / "out/filter_stats.svg").read_text()
    times = {path: path.stat().st_mtime_ns for path in (chain.root / "out").glob("*.png")}
    assert run(arguments(chain, **more)) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    for changes, named in (
        ({}, "another --treatment, --sure, --ensemble;"),
        ({**more, "ensemble": None}, "another --ensemble;"),
        ({**more, "sure": 0.6}, "another --sure;"),
    ):
        assert run(arguments(chain, **changes)) == 2
        assert named in capsys.readouterr().err


def test_weights_are_those_of_the_formula(make_chain, capsys):
    chain = make_chain()
    assert run(arguments(chain, save_loss=chain.root / "loss")) == 0
    mean = numpy_rule(chain, 1.25)[1]
    more = {
        "treatment": "weight",
        "weight_map_path": chain.root / "maps",
        "filtered_mask_path": chain.root / "weighted",
    }
    assert run(arguments(chain, **more)) == 0
    assert "is the mean weight of their pixels" in capsys.readouterr().out
    maps, total, summed = masks(chain.root / "maps"), np.zeros(5), np.zeros(5)
    for name, mask in masks(chain.root / "weighted").items():
        given = np.array(Image.open(chain.root / "label_train" / f"{name.split('_seed_')[0]}.png"))
        assert (mask == given).all()
        loss, known = numpy_loss(chain, chain.root / "syn" / f"{name}.png", mask), mask != 255
        weights = np.exp(-loss[known] / (1.25 * mean[mask[known]]))
        np.testing.assert_allclose(maps[name][known] / 255, weights, atol=0.5 / 255 + 1e-6)
        assert (maps[name][~known] == 0).all()
        total += np.bincount(mask[known], minlength=5)
        summed += np.bincount(mask[known], weights, minlength=5)
    classes = json.loads((chain.root / "weighted/filter_stats.json").read_text())["per_class"].values()
    assert [entry["mean_weight"] for entry in classes] == pytest.approx((summed / total).tolist(), rel=1e-5)
    saved = ["--from-loss", str(chain.root / "loss"), "--syn-mask-path", str(chain.root / "label_train")]
    again = ["--filtered-mask-path", str(chain.root / "again"), "--weight-map-path", str(chain.root / "maps_2")]
    assert run([*saved, *again, "--treatment", "weight"]) == 0  # in seconds, by float16
    for name, values in masks(chain.root / "maps_2").items():
        np.testing.assert_allclose(values.astype(int), maps[name], atol=1)
    assert run([*saved, "--filtered-mask-path", str(chain.root / "again")]) == 2
    assert "another --treatment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sure": 0.5}, "--sure: belongs to --treatment relabel"),
        ({"ensemble": "weights.pth"}, "--ensemble: belongs to"),
        ({"treatment": "weight"}, "--treatment weight and --weight-map-path DIR: give both"),
        ({"treatment": "weight", "weight_map_path": "out"}, "--weight-map-path and --filtered-mask-path: name two"),
        ({"treatment": "weight", "weight_map_path": "syn"}, "lies inside"),
    ],
)
def test_options_of_another_treatment_are_refused(make_chain, capsys, changes, message):
    chain = make_chain()
    changes = {key: chain.root / value if key == "weight_map_path" else value for key, value in changes.items()}
    assert run(arguments(chain, **changes)) == 2
    assert message in capsys.readouterr().err


def test_losses_alone_relabel_nothing(make_chain, capsys):
    chain = make_chain()
    words = ["--from-loss", chain.root, "--syn-mask-path", chain.root, "--filtered-mask-path", chain.root / "x"]
    assert run([*map(str, words), "--treatment", "relabel"]) == 2
    assert "--treatment relabel: needs a segmentor" in capsys.readouterr().err

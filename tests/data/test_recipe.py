"""What training hides of its items, images without masks, and colors that image and reference change together."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from cldm.build import create_model
from cldm.data.color_spread import AT_STRENGTH_1, color_spread, shared_color_for
from cldm.data.hints import ENCODINGS, HintEncoder, ignored_value
from cldm.data.pairs import PairedImages
from cldm.data.reference import recolor
from common.classes import load_class_table
from common.errors import InputError
from tests.conftest import SMALL
from tests.training.test_training import options


def items_of(data, **parameters):
    dataset = PairedImages(data, "train.json", hint_encoding="onehot", classes="MBRSC", **parameters)
    return [dataset[epoch, i] for epoch in range(50) for i in range(4)]


def test_what_is_hidden_follows_from_the_item_and_moves_nothing_else(data):
    choices = {"flip_p": 0.5, "empty_prompt_p": 0.3, "augmentation": {"p": 0.5}}
    plain, hidden = items_of(data, **choices), items_of(data, drop_mask_p=0.2, drop_reference_p=0.4, **choices)
    masks = np.array([not item["hint"].any() for item in hidden])
    references = np.array([item["reference_given"] == 0 for item in hidden])
    assert masks.mean() == pytest.approx(0.2, abs=0.08) and references.mean() == pytest.approx(0.4, abs=0.1)
    assert abs(np.corrcoef(masks, references)[0, 1]) < 0.2
    for before, after, no_mask in zip(plain, hidden, masks, strict=True):
        assert "reference_given" not in before and before["txt"] == after["txt"]
        assert all(torch.equal(before[key], after[key]) for key in ("jpg", "ssl"))
        assert no_mask or torch.equal(before["hint"], after["hint"])
    for name in ("drop_mask_p", "drop_reference_p", "shared_color"):
        with pytest.raises(InputError, match=f"{name} 1.5: must be a"):
            PairedImages(data, "train.json", **{name: 1.5})


def test_a_hidden_reference_is_a_latent_of_zeros(scenes):
    model = create_model(SMALL, classes=str(scenes / "classes.json"))
    table = str(scenes / "classes.json")
    data = PairedImages(scenes, scenes / "train_set_items.json", 32, 0, "palette", table, multiple_of=16)
    batch = default_collate([data[i] for i in range(3)])
    given = model.conditions(batch)
    hidden = model.conditions({**batch, "reference_given": torch.tensor([1.0, 0.0, 1.0])})
    assert not hidden.reference[1].any() and torch.equal(hidden.reference[::2], given.reference[::2])
    assert torch.equal(hidden.mask, given.mask)


def mixed(data, line):
    """Two items with masks, an image without one, and one without a prompt, either."""
    lines = [line(0), line(1), line(2, source=None), line(3, source=None, prompt=None)]
    (data / "mixed.json").write_text("\n".join(lines))
    return data / "mixed.json"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_image_without_a_mask_is_all_ignored(data, line, encoding):
    table = None if encoding == "index" else "MBRSC"
    dataset = PairedImages(
        data, mixed(data, line), hint_encoding=encoding, classes=table, unlabeled=True, augmentation={"p": 1.0}
    )
    item = dataset[2]
    ignored = HintEncoder(encoding, table and load_class_table(table, encoding == "table"))(
        np.full((64, 64), 255, np.uint8)
    )
    assert (ignored == ignored_value(encoding)).all()
    assert torch.equal(item["hint"], ignored) and not torch.equal(dataset[0]["hint"], ignored)
    assert (item["name"], item["txt"], dataset[3]["txt"]) == ("m2", "p2", "")
    assert item["jpg"].shape == (3, 64, 64) and not torch.equal(item["ssl"], item["jpg"])
    unchecked = PairedImages(data, mixed(data, line), hint_encoding="index", unlabeled=True, validate=False, size=128)
    assert unchecked[2]["hint"].shape == unchecked[2]["jpg"].shape == (3, 128, 128)


def test_masks_are_asked_for_unless_said_otherwise(data, line):
    path = mixed(data, line)
    with pytest.raises(InputError, match=r"line 3, field source: missing .*unlabeled=true.*line 4, field source"):
        PairedImages(data, path)
    with pytest.raises(InputError, match="line 3, field source: missing"):  # synthesis has no use for it
        PairedImages(data, path, use_reference=True, unlabeled=True)
    (data / "odd.json").write_text(line(0) + '\n{"sorce": "label/m1.png"}')
    with pytest.raises(InputError, match="line 2, field target: missing"):
        PairedImages(data, "odd.json", unlabeled=True)
    (data / "alone.json").write_text(line(2, source=None) + "\n" + line(0, source=None))
    assert len(PairedImages(data, "alone.json", unlabeled=True)) == 2
    with pytest.raises(InputError, match=r"field target: img/m2.jpg: 64 x 64 px .* no multiples of 128"):
        PairedImages(data, "alone.json", unlabeled=True, multiple_of=128)


def test_the_commands_train_on_them_and_do_not_paint_them(cli, scenes, tmp_path):
    lines = [json.loads(line) for line in (scenes / "train_set_items.json").read_text().splitlines()]
    for line in lines[::2]:
        del line["source"]
    path = tmp_path / "mixed.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    arguments = [*options(scenes, tmp_path, "run", "lightning.trainer.max_steps=2"), "--train-txt-file", path]
    assert "field source: missing" in cli.refused("train", *arguments)
    hides = [
        f"data.params.train.params.{name}" for name in ("unlabeled=true", "drop_mask_p=0.2", "drop_reference_p=0.5")
    ]
    out = cli("train", *arguments, *hides, "data.params.train.params.shared_color=0.5")
    assert "train: 8 items, 4 of them without a mask" in out and "trained 2 steps" in out

    what = ["--config", SMALL, "--ckpt", tmp_path / "run" / "checkpoints" / "last.ckpt", "--data-root", scenes]
    what += ["--classes", scenes / "classes.json", "--outdir", tmp_path / "out", "--gpus", "cpu"]
    line = cli.refused("inference", *what, "--txt-file", path)
    assert "line 1, field source: missing" in line and not (tmp_path / "out").exists()


def test_image_and_reference_change_color_together(data):
    still = {"augmentation": {"p": 0.0}}
    plain = PairedImages(data, "train.json", **still)
    other = PairedImages(data, "train.json", shared_color=1.0, flip_p=1.0, **still)
    for i in range(4):
        assert torch.equal(other[i]["ssl"], other[i]["jpg"])
        assert not torch.equal(other[i]["jpg"], plain[i]["jpg"].flip(-1))
        assert torch.equal(other[i]["hint"], plain[i]["hint"].flip(-1))
    assert not torch.equal(other[1, 0]["jpg"], other[0, 0]["jpg"])


def test_the_spread_of_colors_is_that_of_their_gains():
    rng = np.random.default_rng(0)
    grays = [np.full((2, 2, 3), value, np.uint8) for value in (32, 64, 128)]
    assert color_spread(grays) == pytest.approx(1.0)  # log2 5, 6, 7
    assert shared_color_for(grays) == 1.0
    scene = rng.integers(60, 100, (32, 32, 3), dtype=np.uint8)  # far enough from white
    for strength in (0.25, 0.75):
        changed = [recolor(scene, rng, strength) for _ in range(600)]
        assert shared_color_for(changed) == pytest.approx(strength, rel=0.1)
    assert pytest.approx(0.3, abs=0.01) == AT_STRENGTH_1
    with pytest.raises(InputError, match="1 images"):
        color_spread(grays[:1])

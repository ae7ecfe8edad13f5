import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.data.pairs import PairedImages
from common.errors import InputError
from common.rng import seed_from
from ldm.targets import instantiate_from_config

Line = Callable[..., str]


def to_pixels(tensor: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return ((tensor.permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)


def test_an_item_is_what_its_files_hold(data: Path) -> None:
    dataset = PairedImages(data, "train.json", augmentation={"p": 0.0})
    item = dataset[2]
    mask = np.asarray(Image.open(data / "label/m2.png"))
    assert len(dataset) == 4 and dataset.hint_channels == 3 and dataset.faults == []
    assert all(item[key].dtype == torch.float32 and item[key].shape == (3, 64, 64) for key in ("jpg", "hint", "ssl"))
    assert np.array_equal(to_pixels(item["jpg"]), np.asarray(Image.open(data / "img/m2.jpg")))
    assert torch.equal(item["ssl"], item["jpg"]) and item["jpg"].min() >= -1 and item["jpg"].max() <= 1
    assert torch.equal(item["hint"][0], torch.from_numpy(mask / np.float32(255)))
    assert (item["txt"], item["name"], item["seed"]) == ("p2", "m2", seed_from(0, 0, "m2"))


def test_choices_follow_from_seed_epoch_and_item_alone(data: Path) -> None:
    def dataset(seed: int) -> PairedImages:
        return PairedImages(data, "train.json", flip_p=0.5, empty_prompt_p=0.5, augmentation={"p": 0.5}, seed=seed)

    def same(a: dict, b: dict) -> bool:
        return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)

    first, second, other = dataset(1), dataset(1), dataset(2)
    forward = {(e, i): first[e, i] for e in range(3) for i in range(4)}
    backward = {(e, i): second[e, i] for e in (2, 1, 0) for i in (3, 0, 2, 1)}
    assert all(same(forward[key], backward[key]) for key in forward)
    assert same(first[3], forward[0, 3])
    assert len({item["seed"] for item in forward.values()} | {other[e, i]["seed"] for e, i in forward}) == 24


def test_flip_mirrors_mask_and_image_together(data: Path) -> None:
    plain = PairedImages(data, "train.json", augmentation={"p": 0.0})[1]
    flipped = PairedImages(data, "train.json", flip_p=1.0, augmentation={"p": 0.0})[1]
    for key in ("jpg", "hint", "ssl"):
        assert torch.equal(flipped[key], plain[key].flip(-1))


def test_shares_of_flips_and_empty_prompts(data: Path) -> None:
    plain = PairedImages(data, "train.json")
    dataset = PairedImages(data, "train.json", flip_p=0.5, empty_prompt_p=0.2)
    items = [(i, dataset[epoch, i]) for epoch in range(25) for i in range(4)]
    empty = np.array([item["txt"] == "" for _, item in items])
    masks = [plain[i]["hint"] for i in range(4)]
    flips = np.array([not torch.equal(item["hint"], masks[i]) for i, item in items])
    assert abs(empty.mean() - 0.2) < 0.1 and abs(flips.mean() - 0.5) < 0.12
    assert abs(np.corrcoef(empty, flips)[0, 1]) < 0.2


def test_the_reference_of_training_is_the_augmented_image(data: Path) -> None:
    item = PairedImages(data, "train.json", augmentation={"p": 1.0})[0]
    assert item["ssl"].shape == item["jpg"].shape and not torch.equal(item["ssl"], item["jpg"])
    with pytest.raises(InputError, match="augmentation: unknown parameters strength"):
        PairedImages(data, "train.json", augmentation={"strength": 1})


@pytest.mark.parametrize(("size", "shape"), [(128, (128, 128)), ([64, 128], (64, 128)), ((192, 64), (192, 64))])
def test_resizing_keeps_class_ids(data: Path, size: object, shape: tuple[int, int]) -> None:
    item = PairedImages(data, "train.json", size=size, hint_encoding="onehot", classes="MBRSC")[0]  # type: ignore[arg-type]
    assert item["jpg"].shape == item["ssl"].shape == (3, *shape) and item["hint"].shape == (5, *shape)
    assert set(item["hint"].unique().tolist()) == {0.0, 1.0}


def test_synthesis_takes_the_items_own_reference(data: Path, line: Line) -> None:
    Image.new("RGB", (200, 100), (255, 0, 51)).save(data / "ref/m0.png")
    (data / "list.json").write_text(line(0, target="missing.jpg", ref_image="ref/m0.png"))
    dataset = PairedImages(data, "list.json", use_reference=True)
    item = dataset[0]
    assert "jpg" not in item and item["ssl"].shape == item["hint"].shape == (3, 64, 64)
    assert torch.allclose(item["ssl"].mean((1, 2)), torch.tensor([1.0, -1.0, -0.6]))
    assert (item["mask_path"], item["reference_path"]) == (str(data / "label/m0.png"), str(data / "ref/m0.png"))


def test_faults_stop_or_are_skipped(data: Path, line: Line) -> None:
    (data / "list.json").write_text("\n".join([line(0), "{", line(1)]))
    with pytest.raises(InputError, match=r"list\.json line 2: no JSON object"):
        PairedImages(data, "list.json")
    dataset = PairedImages(data, "list.json", skip_invalid=True)
    assert [item.name for item in dataset.items] == ["m0", "m1"] and [fault.line for fault in dataset.faults] == [2]


def test_a_file_that_breaks_later_is_named(data: Path) -> None:
    dataset = PairedImages(data, "train.json", validate=False)
    (data / "img/m1.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"img/m1\.jpg \(line 2 of the list\): cannot be read"):
        dataset[1]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"size": 60}, "size 60 x 60"),
        ({"size": [64]}, r"size \[64\]: must be"),
        ({"flip_p": 2}, "flip_p 2"),
        ({"interpolation": "area"}, "interpolation area: must be one of nearest"),
        ({"hint_encoding": "palette"}, "needs a class table"),
        ({"hint_encoding": "onehot", "classes": "LoveDA", "txt_file": "nowhere"}, "nowhere: no such list file"),
    ],
)
def test_bad_parameters_are_refused(data: Path, parameters: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PairedImages(data, **{"txt_file": "train.json", **parameters})  # type: ignore[arg-type]


def test_published_targets_resolve(data: Path) -> None:
    params = {"data_root": str(data), "txt_file": "train.json", "size": 64, "interpolation": "bicubic"}
    train, validation = (
        instantiate_from_config({"target": f"ldm.data.GID24_Control_ref.{name}", "params": params})
        for name in ("GID24Train", "GID24Validation")
    )
    assert isinstance(train, PairedImages) and (train.flip_p, validation.flip_p) == (0.5, 0.0)


@pytest.mark.parametrize("encoding", ["index", "palette", "onehot"])
@pytest.mark.parametrize("ignore", [9, 0])
def test_hints_obey_the_tables_id_to_ignore(data: Path, encoding: str, ignore: int) -> None:
    table = data / "classes.json"
    hints = []
    for index in (255, ignore):
        table.write_text(json.dumps({"classes": list("abcde"), "ignore_index": index}))
        for path in (data / "label").iterdir():
            ids = np.array(Image.open(path))
            Image.fromarray(np.where((ids == 255) | (ids == ignore), index, ids).astype(np.uint8)).save(path)
        hints.append(PairedImages(data, "train.json", hint_encoding=encoding, classes=str(table))[0]["hint"])
    assert torch.equal(*hints)


def test_colors_that_tell_classes_apart_differ(data: Path) -> None:
    table = data / "classes.json"
    table.write_text(json.dumps({"classes": list("abcde"), "palette": [[1, 2, 3]] * 5}))
    PairedImages(data, "train.json", hint_encoding="palette", classes=str(table))
    with pytest.raises(InputError, match="b and a have the color"):
        PairedImages(data, "train.json", hint_encoding="table", classes=str(table))

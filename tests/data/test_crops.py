"""Random crops at the files' own scale: mask, image and reference are cut where they belong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.data.pairs import PairedImages
from common.errors import InputError

SIDE, CROP = 96, 64


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """One image whose pixel is its place (row, column), and a mask of row + column."""
    rows, columns = np.indices((SIDE, SIDE), dtype=np.uint8)
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=2)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(rows + columns).save(tmp_path / "mask.png")
    line = {"source": "mask.png", "target": "image.png", "prompt": "a place"}
    (tmp_path / "list.json").write_text(json.dumps(line) + "\n")
    return tmp_path


def places(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 2): rows and columns in the file."""
    return ((image[:2].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(int)


def test_mask_and_image_are_cut_from_one_place_that_changes_with_the_epoch(scene: Path) -> None:
    dataset = PairedImages(scene, "list.json", crop=CROP, quarter_turns=True, flip_p=0.5, augmentation={"p": 0.0})
    seen = set()
    for epoch in range(40):
        item = dataset[epoch, 0]
        place = places(item["jpg"])
        assert place.shape == (CROP, CROP, 2)
        ids = (item["hint"][0] * 255).round().numpy().astype(int)
        assert np.array_equal(ids, place.sum(2))
        assert (np.unique(place[..., 0]).size, np.unique(place[..., 1]).size) == (CROP, CROP)  # no pixel twice
        across, down = place[0, 1] - place[0, 0], place[1, 0] - place[0, 0]
        seen.add((*across.tolist(), *down.tolist()))
    assert len(seen) == 8  # all turns, mirrored or not
    corners = {tuple(places(dataset[epoch, 0]["jpg"]).reshape(-1, 2).min(0)) for epoch in range(40)}
    assert len(corners) > 30 and max(map(max, corners)) == SIDE - CROP and min(map(min, corners)) == 0


def test_a_reference_is_of_the_crop_or_from_elsewhere(scene: Path) -> None:
    same = PairedImages(scene, "list.json", crop=CROP, augmentation={"p": 0.0})
    other = PairedImages(scene, "list.json", crop=CROP, augmentation={"p": 0.0}, reference_from="elsewhere")
    for epoch in range(5):
        assert torch.equal(same[epoch, 0]["jpg"], same[epoch, 0]["ssl"])
        assert torch.equal(same[epoch, 0]["jpg"], other[epoch, 0]["jpg"])
    moved = [places(other[epoch, 0]["ssl"])[0, 0] - places(other[epoch, 0]["jpg"])[0, 0] for epoch in range(5)]
    assert sum(map(np.any, moved)) >= 4  # chance leaves it in place once in 1,089 epochs
    colored = PairedImages(scene, "list.json", crop=CROP, augmentation={"p": 0.0}, shared_color=1.0)
    item = colored[1, 0]
    assert torch.equal(item["jpg"], item["ssl"]) and not torch.equal(item["jpg"], same[1, 0]["jpg"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 128}, "96 x 96 px (width x height), smaller than the crops of 128"),
        ({"crop": 50}, "crop 50: must be a multiple of 64"),
        ({"crop": 128, "size": 64}, "crop 128: larger than size 64 x 64"),
        ({"quarter_turns": True}, "give crop the side of a square"),
        ({"crop": 64, "reference_from": "afar"}, "reference_from afar: must be one of crop, elsewhere"),
        ({"crop": 64, "masks_only": True}, "a synthesis paints whole masks"),
    ],
)
def test_crops_that_cannot_be(scene: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        PairedImages(scene, "list.json", **options)
    assert message in str(error.value)

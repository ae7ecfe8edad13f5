"""Maskiges: exact round trips, resizing, bounded memory, and palettes that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gss import InputError
from gss.maskige import Maskige, resize_labels, squared_distances
from gss.palette import PALETTE_FOLDER, load_palette, min_distance

RGB = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("name", sorted(path.stem for path in PALETTE_FOLDER.glob("*.json")))
def test_every_palette_is_a_class_table_with_an_exact_round_trip(name):
    from common.classes import load_class_table

    path = PALETTE_FOLDER / f"{name}.json"
    maskige = Maskige(load_palette(name))
    table = load_class_table(str(path))
    assert len(table) == maskige.num_classes and (table.palette == maskige.palette[:-1].numpy()).all()
    labels = torch.arange(maskige.num_classes).view(1, 1, -1)
    assert (maskige.decode(maskige.encode(labels)) == labels).all()
    ignored = maskige.encode(torch.full((1, 1, 1), 255))
    assert maskige.decode(ignored, keep_ignore=True).item() == maskige.num_classes


@pytest.mark.parametrize(("name", "published"), [("cityscapes", 20.0), ("ade20k", 20.03), ("mseg", 18.69)])
def test_learned_palettes_beat_the_published_ones_clearly(name, published):
    assert min_distance(load_palette(f"published_{name}")[:-1]) <= published
    assert min_distance(load_palette(name)) > 2.5 * published


def test_resized_labels_are_the_argmax_of_the_resized_one_hot_map():
    labels = torch.randint(0, 5, (2, 9, 13), generator=torch.Generator().manual_seed(0))
    labels[labels == 4] = 255
    for size in ((24, 40), (5, 7), (9, 13), (18, 26)):
        index = labels.clamp(max=4)
        maps = F.interpolate(F.one_hot(index, 5).movedim(-1, 1).float(), size, mode="bilinear", align_corners=False)
        expected = maps.argmax(1)
        expected[expected == 4] = 255
        assert (resize_labels(labels, size) == expected).all()


def test_scores_are_the_resized_one_hot_map_or_the_log_likelihood():
    maskige = Maskige(load_palette(RGB))
    colors = 255 * torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    distances = ((colors[:, None] - maskige.palette[None, :3, :, None, None]) ** 2).sum(2)  # (B, N, h, w)
    votes = F.one_hot(distances.argmin(1), 3).movedim(-1, 1).float()
    expected = F.interpolate(votes, (8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(maskige.scores(colors, (8, 12)), expected)
    graded = maskige.scores(colors, (16, 24), std=20.0)
    torch.testing.assert_close(graded, distances / -800)


def test_distances_are_exact():
    generator = torch.Generator().manual_seed(0)
    pixels, palette = 255 * torch.rand(50, 3, generator=generator), torch.randint(0, 256, (7, 3), generator=generator)
    expected = ((pixels[:, None].double() - palette[None].double()) ** 2).sum(-1)
    torch.testing.assert_close(squared_distances(pixels, palette.float()).double(), expected, rtol=1e-6, atol=1e-3)


class LargestTensor(TorchDispatchMode):
    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_memory_is_bounded_at_full_size():
    maskige = Maskige(load_palette("ade20k"))
    published = 150 * 3 * 512 * 512 * 4  # classes x 3 x height x width, float32
    colors = torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8)
    with LargestTensor() as largest:
        maskige.decode(colors)
    assert 0 < largest.bytes < published / 50


@pytest.mark.parametrize(
    ("palette", "classes", "words"),
    [
        (RGB[:3], 3, "3 colors with the one for ignored pixels; num_classes=3 needs 4"),
        ([*RGB, RGB[1]], 4, "entries 1 and 4 are both [0, 255, 0]"),
        ([*RGB[:3], [0, 0, 256]], 3, "entry 3 is [0, 0, 256]"),
        ([*RGB[:3], [0, 0, 1.5]], 3, "integers in 0..255"),
        ([*RGB[:3], [0, 0]], 3, "triples"),
        ("nothing", 3, "one of: ade20k, cityscapes"),
    ],
)
def test_bad_palettes(palette, classes, words):
    with pytest.raises(InputError) as error:
        load_palette(palette, classes)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_palette_files(tmp_path):
    path = tmp_path / "p.json"
    for text, words in (
        ("{", "no readable JSON"),
        ('{"classes": []}', "no field 'palette'"),
        ('{"palette": [[1, 2, 3]]}', "at least 2"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            load_palette(str(path))
    path.write_text(json.dumps({"palette": RGB[:3]}))  # a plain class table: the ignore color is found
    assert min_distance(load_palette(str(path), 3)) >= 200


def test_ids_beyond_the_palette():
    maskige = Maskige(load_palette(RGB))
    labels = torch.tensor([[[0, 3, 255, 4, 254]]])
    with pytest.raises(InputError, match=r"2 pixels have the ids \[4, 254\]; the palette knows 0..2 and 255"):
        maskige.encode(labels)
    with pytest.raises(InputError, match=r"\[-1\]"):
        maskige.encode(torch.tensor([[[-1]]]))
    assert np.asarray(maskige.encode(labels[..., :3])).shape == (1, 3, 1, 3)


def test_the_label_to_ignore_may_be_any():
    palette = load_palette(RGB)
    labels = torch.tensor([[[0, 1, 2, 255]]])
    colors = Maskige(palette).encode(labels)
    for ignored in (9, -1):
        assert torch.equal(Maskige(palette, ignored).encode(labels.masked_fill(labels == 255, ignored)), colors)
    without_green = Maskige(palette, ignore_index=1).encode(labels)  # one of the classes'
    assert without_green[0, :, 0].T.tolist() == [RGB[0], RGB[3], RGB[2], RGB[3]]

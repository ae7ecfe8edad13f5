"""What an exported pipeline reads and writes, in numbers: mask files' ids, bands, and the part of a reference."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.data.pairs import fitted
from cldm.diffusers_export.card import example
from cldm.diffusers_export.export import scaling_of
from cldm.diffusers_export.remote.pipeline import TISynthPipeline
from common.bands import Bands, read_pixels
from common.classes import class_table, load_class_table
from common.rasters import write_geotiff


def pipe(bands=None):
    made = SimpleNamespace(config=SimpleNamespace(bands=None if bands is None else scaling_of(bands)))
    made.scaled = lambda numbers: TISynthPipeline.scaled(made, numbers)
    return made


@pytest.mark.parametrize(
    ("table", "ids", "classes"),
    [
        (load_class_table("LoveDA"), [1, 7, 0, 255], [0, 6, 255, 255]),
        (load_class_table("MBRSC:from1"), [1, 5, 0, 6], [0, 4, 255, -1]),  # what is no class is refused
        (class_table({"classes": ["a", "b", "c"], "ignore_index": 1}, "classes.json"), [0, 1, 2], [0, 255, 2]),
        (load_class_table("MBRSC"), [0, 4, 255], [0, 4, 255]),
        (None, [0, 4, 255], [0, 4, 255]),
    ],
)
def test_a_cards_example_brings_ids_of_files_to_classes(table, ids, classes):
    text = example(SimpleNamespace(fuses=True, bands=None), table)
    compile(text, "README.md", "exec")
    here = {"np": np, "mask": np.array([ids], np.uint8)}
    exec("\n".join(line for line in text.splitlines() if "of_id" in line), here)
    assert here["mask"].tolist() == [classes]


STATED = [
    {"dtype": "uint16", "nodata": 0.0, "ranges": [[0, 900], [0, 900]]},
    {"dtype": "int16", "nodata": -9999.0, "ranges": [[-9999, 900], [0, 900]]},
    {"dtype": "float32", "nodata": 0.0, "ranges": [[0, 1], [0, 1]]},
    {"dtype": "float32", "nodata": -9999.0, "ranges": [[-9999, 1], [0, 1]]},
    {"dtype": "uint8", "nodata": 255.0, "ranges": [[0, 400], [0, 400]]},  # cut to the type before it is looked at
    {"dtype": "uint8", "nodata": None, "ranges": [[0, 400], [0, 255]]},
]


@pytest.mark.parametrize("stated", STATED, ids=lambda one: f"{one['dtype']} {one['nodata']}")
def test_no_data_are_where_they_are_here(stated, tmp_path):
    """In one band or in all, as ``common.gaps.has_data`` says; painted numbers are never that."""
    bands = Bands(**stated)
    numbers = np.random.default_rng(0).integers(1, 250, (6, 8, 2)).astype(stated["dtype"])
    nodata = stated["nodata"] or 0
    numbers[0, 0], numbers[0, 1, 0] = nodata, nodata
    if stated["dtype"] == "float32":
        numbers /= 250
        numbers[0, :2] *= 250
        numbers[1, 0, 0], numbers[1, 1, 1] = np.nan, np.inf
    write_geotiff(tmp_path / "a.tif", numbers, None)  # the file says nothing of it: the bands' word counts
    ours = read_pixels(tmp_path / "a.tif", bands).values
    np.testing.assert_allclose(TISynthPipeline.scaled(pipe(bands), numbers), ours, atol=1e-4)

    made = torch.rand(1, 2, 6, 8) * 3 - 1.5
    made[0, :, 0, 0], made[0, 0, 0, 1], made[0, :, 0, 2] = -1, -1, 1.0
    written = TISynthPipeline.numbers(pipe(bands), made)[0]
    assert written.dtype == stated["dtype"] and (written == bands.stored(made[0].permute(1, 2, 0).numpy())).all()


def test_known_numbers_beside_no_data():
    made = torch.tensor([[-1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])[None, :, None]
    known = {
        "uint16": [[1, 1], [0, 900], [900, 900]],
        "int16": [[-9998, 0], [-9998, 900], [900, 900]],
        "uint8": [[0, 0], [0, 255], [254, 254]],
    }
    for stated in (STATED[0], STATED[1], STATED[4]):
        assert TISynthPipeline.numbers(pipe(Bands(**stated)), made)[0, 0].tolist() == known[stated["dtype"]]


@pytest.mark.parametrize("shape", [(9, 8), (8, 11), (13, 17), (16, 16), (20, 9)])
def test_the_part_of_a_reference_is_the_one_that_is_taken_here(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = TISynthPipeline._fitted(pipe(), Image.fromarray(pixels), (8, 8))
    assert np.allclose(found / 127.5 - 1, fitted(pixels, (8, 8), "crop", Image.Resampling.BICUBIC).permute(1, 2, 0))
    if shape == (9, 8):
        assert np.array_equal(found, pixels[:8])  # not blurred
    bands = Bands(ranges=[[0, 255], [0, 510]], dtype="uint16")
    numbers = pixels[..., :2].astype(np.uint16)
    here = fitted(TISynthPipeline.scaled(pipe(bands), numbers), (8, 8), "crop", Image.Resampling.BICUBIC)
    there = TISynthPipeline._fitted(pipe(bands), numbers, (8, 8))
    assert np.allclose(there / 127.5 - 1, here.permute(1, 2, 0), atol=1e-5)

"""Small images, and a command line that trains on them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = Path(__file__).with_name("small.yaml")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Ten images of 24 x 32 px: smooth colors with a bright square."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        corners = rng.integers(0, 200, (2, 2, 3)).astype(np.uint8)
        picture = np.asarray(Image.fromarray(corners).resize((32, 24), Image.Resampling.BILINEAR)).copy()
        top, left = rng.integers(0, 16, 2)
        picture[top : top + 6, left : left + 6] = 230
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def line(images, tmp_path):
    """The command line of a training in ``tmp_path / name``; further words are appended."""

    def words(name="run", *more):
        return ("--images", images, "--config", SMALL, "--device", "cpu", "--out", tmp_path / name, *more)

    return words

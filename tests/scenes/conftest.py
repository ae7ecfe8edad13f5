"""A scene's mask, and the command that paints it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import SMALL
from tests.synthesis.conftest import ckpt  # noqa: F401


@pytest.fixture(scope="session")
def mask(scenes, tmp_path_factory):
    """A mask of 96 x 64 px (height x width) of the small data set's, in a mosaic."""
    tiles = [np.array(Image.open(path)) for path in sorted((scenes / "label_train").glob("*.png"))[:6]]
    path = tmp_path_factory.mktemp("scene") / "mosaic.png"
    Image.fromarray(np.block([tiles[0:2], tiles[2:4], tiles[4:6]])).save(path)
    return path


@pytest.fixture(scope="session")
def painting(scenes, ckpt, mask):  # noqa: F811
    """The words of a command that paints the mask by windows of 32 px."""

    def words(out, *more, mask=mask):
        reference = sorted((scenes / "img_train").iterdir())[0]
        line = [
            *(mask, "--reference", reference, "--config", SMALL, "--ckpt", ckpt, "--classes", scenes / "classes.json"),
            *("--window", "32", "--steps", "2", "--scale", "2", "--seed", "5", "--device", "cpu", "--out", out, *more),
        ]
        return [str(word) for word in line]

    return words


def pixels(path):
    return np.array(Image.open(path)).astype(int)


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result

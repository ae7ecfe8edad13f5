import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.errors import InputError
from evaluation.inception import distances, inception_features


class MeanColor(nn.Module):
    """Features that are known: the mean of each channel."""

    num_features = 3

    def forward(self, images):
        return images.mean(dim=(2, 3))


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for index in range(8):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((8, 8, 3), rng.integers(0, 256, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_the_same_images_have_no_distance(files):
    assert distances(MeanColor(), files, files, batch_size=3)["FID"] == pytest.approx(0, abs=1e-4)


def test_fid_of_colors_in_closed_form(files):
    found = distances(MeanColor(), files[:4], files[4:])

    def features(paths):
        colors = np.array([np.array(Image.open(path))[0, 0] for path in paths]) / 255
        return (colors - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]

    a, b = features(files[:4]), features(files[4:])
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(ca @ cb).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root
    assert found["FID"] == pytest.approx(expected, rel=1e-3)
    assert set(found) == {"FID", "KID", "KID_std"}


def test_other_weights_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="not weights of torchvision's inception_v3"):
        inception_features(tmp_path / "w.pth")
    with pytest.raises(InputError, match="no such file"):
        inception_features(tmp_path / "none.pth")

"""Weights in 8 bit: nearly the same prediction, and one line where they cannot be."""

import sys

import pytest
import torch

from cldm.conditions import Conditions
from common.errors import InputError
from ldm.quantization import quantize, quantizer
from tests.conftest import small_model

TOLERANCE = 0.02  # of a prediction, by its norm


@pytest.mark.filterwarnings("ignore")  # torchao's own
@torch.no_grad()
def test_predictions_of_8_bit_weights_are_nearly_the_same():
    pytest.importorskip("torchao")
    model = small_model(spread=0.1)
    g = torch.Generator().manual_seed(0)
    shapes = {"mask": (2, 3, 32, 32), "reference": (2, 48, 8, 8), "text": (2, 7, 16)}
    given = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    x, t = torch.randn(2, 48, 8, 8, generator=g), torch.tensor([3, 900])
    expected = model.apply_model(x, t, Conditions(**given))
    assert quantize(model.networks, "none", False) == 0
    assert quantize(model.networks, "int8", False) > 20
    found = model.apply_model(x, t, Conditions(**given))
    assert 0 < (found - expected).norm() < TOLERANCE * expected.norm()


def test_what_is_not_there_is_refused_in_one_line(cli, command, tmp_path, monkeypatch):
    line = cli.refused("inference", *command(tmp_path, "--quantize", "fp8"))
    assert "--quantize fp8: needs a GPU of compute capability 8.9" in line
    line = cli.refused("inference", *command(tmp_path, "--compile", "graphs"))
    assert "--compile graphs: CUDA graphs need a GPU; take blocks" in line
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match=r"needs torchao: pip install '\.\[quantize\]'"):
        quantizer("int8", False)

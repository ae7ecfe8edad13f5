"""The optimizers that a training chooses from, and what the frozen part of the U-Net keeps for the backward pass."""

import sys
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from cldm.build import create_model
from cldm.conditions import Conditions
from common.devices import use_threads
from common.errors import InputError
from ldm.training.optimizers import check_optimizer, make_optimizer
from tests.conftest import SMALL

OPTIONS = {"lr": 0.1, "weight_decay": 0.5}


def trained(kind, steps):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = make_optimizer(kind, [parameter], OPTIONS)
    for step in range(steps):
        parameter.grad = torch.tensor([0.5, -1.0, 4.0]) * (step + 1)
        optimizer.step()
    return parameter.detach()


def test_an_adamw_is_the_papers_by_either_kernel():
    # the first step is p - lr (weight_decay p + sign g)
    start = torch.tensor([1.0, -2.0, 3.0])
    once = start - 0.1 * (0.5 * start + torch.tensor([1.0, -1.0, 1.0]))
    assert torch.allclose(trained("adamw", 1), once, atol=1e-6)
    assert torch.allclose(trained("adamw", 3), trained("adamw_fused", 3), atol=1e-6)


def test_averages_in_8_bit_are_bitsandbytes(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=torch.optim.AdamW))
    )
    assert torch.allclose(trained("adamw_8bit", 3), trained("adamw", 3), atol=1e-6)
    check_optimizer("adamw_8bit", "gpu")
    with pytest.raises(InputError, match="adamw_8bit: needs a GPU"):
        check_optimizer("adamw_8bit", "cpu")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="needs bitsandbytes: pip install"):
        check_optimizer("adamw_8bit", "gpu")


def test_the_frozen_encoder_keeps_nothing_for_the_backward_pass():
    config = OmegaConf.load(SMALL)
    config.model.params.update(trainable="fusion", optimizer="adamw")
    model = create_model(config, classes="MBRSC").train()
    assert model.configure_optimizers()["optimizer"].defaults["fused"] is None  # for each tensor at once on a GPU
    unet, learns = model.model.diffusion_model, {}

    def note(module, given, result):
        learns[module] = result.requires_grad

    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        block.register_forward_hook(note)
    g = torch.Generator().manual_seed(0)
    shapes = {"mask": (2, 3, 32, 32), "reference": (2, 48, 8, 8), "text": (2, 7, 16)}
    cond = Conditions(**{name: torch.randn(shape, generator=g) for name, shape in shapes.items()}, remember=False)
    model.apply_model(torch.randn(2, 48, 8, 8, generator=g), torch.tensor([3, 900]), cond)
    assert not any(learns[block] for block in unet.input_blocks)
    assert learns[unet.middle_block] and all(learns[block] for block in unet.output_blocks)


def test_threads_are_those_that_are_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    use_threads(None)
    assert torch.get_num_threads() == before
    use_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)

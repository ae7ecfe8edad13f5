"""Strict loading: exactly what does not fit is listed by module and refused, unless allowed."""

import pytest
import torch
from torch import nn

from common.errors import InputError
from ldm.checkpoint import load_weights


class Model(nn.Module):
    """Modules named as in published checkpoints."""

    def __init__(self, width=4, channels=3, text="transformer", context=5):
        super().__init__()
        block = nn.Module()
        block.attn2 = nn.Module()
        block.attn2.to_k = nn.Linear(context, width, bias=False)
        self.model = nn.Module()
        self.model.diffusion_model = nn.Module()
        self.model.diffusion_model.input_blocks = nn.Sequential(nn.Sequential(nn.Conv2d(channels, width, 3)), block)
        self.control_model = nn.Module()
        self.control_model.zero_convs = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))
        self.ssl_stage_model = nn.Linear(2, 2)
        self.cond_stage_model = nn.ModuleDict({text: nn.Linear(context, context)})
        self.register_buffer("alphas_cumprod", torch.linspace(1, 0, 10))


def copies(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_every_weight_is_copied():
    source, model = Model(), Model()
    report = load_weights(model, source.state_dict(), name="a.ckpt")
    assert report.complete
    assert report.loaded == 15
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    assert report.summary().splitlines() == [
        "weights from a.ckpt: 15 tensors",
        "  model.diffusion_model  3 loaded",
        "  control_model          8 loaded",
        "  ssl_stage_model        2 loaded",
        "  cond_stage_model       2 loaded",
    ]


def test_precision_is_the_models():
    source, model = Model().half(), Model()
    load_weights(model, source.state_dict())
    assert model.ssl_stage_model.weight.dtype == torch.float32
    assert torch.equal(model.ssl_stage_model.weight, source.ssl_stage_model.weight.float())
    # half precision must not reach the noise schedule
    assert torch.equal(model.alphas_cumprod, torch.linspace(1, 0, 10))


def test_linear_layer_and_1x1_convolution_are_the_same_matrix():
    model, state = Model(), copies(Model())
    state["ssl_stage_model.weight"] = torch.tensor([[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]])
    state["control_model.zero_convs.0.weight"] = torch.arange(16.0).reshape(4, 4)
    load_weights(model, state)
    assert model.ssl_stage_model.weight.tolist() == [[1, 2], [3, 4]]
    assert model.control_model.zero_convs[0].weight.flatten().tolist() == list(range(16))


def damaged():
    """A state with a missing module, an unexpected weight and one of another shape."""
    state = {key: value for key, value in copies(Model()).items() if not key.startswith("control_model.")}
    state["ssl_stage_model.weight"] = torch.zeros(3, 2)
    state["ssl_stage_model.scale"] = torch.zeros(1)
    return state


LISTING = (
    "a.ckpt: does not fit the model: "
    "control_model: 8 missing (control_model.zero_convs.0.weight, control_model.zero_convs.0.bias, "
    "control_model.zero_convs.1.weight, and 5 more); "
    "ssl_stage_model: 1 unexpected (ssl_stage_model.scale), "
    "1 mismatched (ssl_stage_model.weight: 3x2 in the file, 2x2 in the model). "
    "Name the config it was made with, or go on without what does not fit: "
    "allow_mismatch control_model ssl_stage_model"
)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded():
    model = Model()
    before = copies(model)
    with pytest.raises(InputError) as refusal:
        load_weights(model, damaged(), name="a.ckpt")
    assert str(refusal.value) == LISTING
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_allowed_modules_need_not_fit():
    state, model = damaged(), Model()
    before = copies(model)
    with pytest.raises(InputError, match="does not fit the model: ssl_stage_model: 1 unexpected"):
        load_weights(model, state, allow=["control_model"])
    report = load_weights(model, state, allow=["control_model", "ssl_stage_model.weight", "ssl_stage_model.scale"])
    assert not report.complete
    assert report.modules["control_model"].missing == [key for key in before if key.startswith("control_model.")]
    assert report.modules["ssl_stage_model"].unexpected == ["ssl_stage_model.scale"]
    assert "control_model          8 missing (control_model.zero_convs.0.weight," in report.summary()
    assert torch.equal(model.ssl_stage_model.weight, before["ssl_stage_model.weight"])
    assert torch.equal(model.ssl_stage_model.bias, state["ssl_stage_model.bias"])
    assert load_weights(Model(), state, allow=["all"]).loaded == report.loaded == 4 + 2


@pytest.mark.parametrize("module", ["control", "control_models", "ssl_stage_model.bia"])
def test_allowing_what_is_no_module_is_refused(module):
    with pytest.raises(
        InputError, match=rf"allow_mismatch {module}: .* such a module \(noise_schedule, model\.diffusion_model, "
    ):
        load_weights(Model(), damaged(), allow=[module])


def test_schedule_tables_may_be_missing_or_present_but_must_agree():
    state = copies(Model())
    del state["alphas_cumprod"]
    assert load_weights(Model(), state).complete
    assert load_weights(Model(), {**state, "betas": torch.zeros(10), "logvar": torch.zeros(10)}).complete
    for other in (torch.linspace(1, 0.1, 10), torch.linspace(1, 0, 20)):
        with pytest.raises(InputError, match="noise_schedule: 1 mismatched"):
            load_weights(Model(), {**state, "alphas_cumprod": other})
        load_weights(Model(), {**state, "alphas_cumprod": other}, allow=["noise_schedule"])


def without_branches(model):
    return {key: value for key, value in copies(model).items() if key.split(".")[0] not in BRANCHES}


BRANCHES = ("control_model", "ssl_stage_model")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Model(width=8).state_dict(), "Its U-Net starts with 8 channels, the model's with 4"),
        (Model(channels=9).state_dict(), "an inpainting U-Net for 9 input channels, the model's takes 3"),
        (Model(text="model").state_dict(), r"Its text encoder is OpenCLIP \(SD 2.x\), not the model's"),
        (Model(context=6).state_dict(), "It attends to texts of 6 channels, the model to 5"),
        (without_branches(Model()), "no control branches: make a start checkpoint of it with scripts/init_checkpoint"),
        ({**copies(Model()), "conditioner.embedders.0.weight": torch.zeros(1)}, "It is an SDXL checkpoint"),
        ({"layer4.0.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, r"other modules \(fc, layer4\)"),
    ],
)
def test_another_architecture_is_named(state, words):
    with pytest.raises(InputError, match=words) as refusal:
        load_weights(Model(), state)
    assert "\n" not in str(refusal.value)


def test_nothing_that_fits_is_refused_even_if_all_is_allowed():
    with pytest.raises(InputError, match="does not fit"):
        load_weights(Model(), {"fc.bias": torch.zeros(1)}, allow=["all"])

"""What only a GPU can show: the same numbers as on the CPU, and commands at its precisions. Skipped without one."""

import pytest
import torch

from cldm.conditions import Conditions
from ldm.models.sampling import sample
from tests.conftest import SMALL, small_model
from tests.synthesis.conftest import ckpt, command, images  # noqa: F401
from tests.training.test_training import options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def model():
    return small_model(spread=0.1)


def given(device):
    generator = torch.Generator().manual_seed(0)
    mask, reference, text, x = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((2, 3, 32, 32), (2, 48, 8, 8), (2, 7, 16), (2, 48, 8, 8))
    )
    return Conditions(mask=mask, reference=reference, text=text), x


@torch.no_grad()
def test_predictions_are_those_of_the_cpu(model, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    t = torch.tensor([901, 301])
    cond, x = given("cpu")
    expected = model.to("cpu").apply_model(x, t, cond)
    cond, x = given("cuda")
    model.to("cuda").accelerate()
    found = model.apply_model(x, t.cuda(), cond).cpu()
    assert (found - expected).norm() < 1e-4 * expected.norm()
    for dtype, most in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        with torch.autocast("cuda", dtype):
            rough = model.apply_model(x, t.cuda(), cond).float().cpu()
        assert (rough - expected).norm() < most * expected.norm()


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "unipc", "euler", "lcm", "tcd"])
def test_an_images_noise_is_its_own(model, sampler):
    how = {"sampler": sampler, "eta": 0.5 if sampler in ("ddim", "tcd") else 0.0}
    model.to("cuda")
    cond, x = given("cuda")
    both = sample(model, cond, None, x, 4, seeds=[7, 8], **how)
    one = Conditions(mask=cond.mask[1:], reference=cond.reference[1:], text=cond.text[1:])
    alone = sample(model, one, None, x[1:], 4, seeds=[8], **how)
    assert (both[1:] - alone).abs().max() < 1e-2 * both.abs().max()


@pytest.mark.parametrize("kind", ["blocks", "graphs"])
def test_compiled_networks_make_the_same_picture(kind):
    model = small_model(spread=0.1).to("cuda")
    cond, x = given("cuda")
    how = {"guidance_scale": 2.0, "sampler": "dpmsolver++"}
    expected = sample(model, cond, model.without_text(cond), x, 4, **how)
    model.accelerate(kind)
    for _ in range(2):  # the second replays what the first recorded
        cond, x = given("cuda")
        found = sample(model, cond, model.without_text(cond), x, 4, **how)
        assert (found - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("precision", ["32", "bf16", "16", "16-mixed"])
def test_a_synthesis(cli, command, tmp_path, precision):  # noqa: F811
    words = command(tmp_path / "out", "--gpus", "0", "--precision", precision, "--only", "train_0000_seed_5")
    cli("inference", *words)
    assert len(images(tmp_path / "out")) == 1


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_weights_in_8_bit(cli, command, tmp_path, kind):  # noqa: F811
    pytest.importorskip("torchao")
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs Ada, Hopper or later")
    how = ("--gpus", "0", "--precision", "bf16", "--quantize", kind, "--only", "train_0000_seed_5")
    cli("inference", *command(tmp_path / "out", *how))
    assert len(images(tmp_path / "out")) == 1


def test_an_optimizer_in_8_bit(cli, scenes, tmp_path):
    pytest.importorskip("bitsandbytes")
    how = ("--gpus", "0", "--optimizer", "adamw_8bit", "lightning.trainer.max_steps=2")
    cli("train", "--base", SMALL, *options(scenes, tmp_path, "run", *how))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_training_goes_on(cli, scenes, tmp_path, precision):
    how = ("--gpus", "0", "--precision", precision)
    cli("train", "--base", SMALL, *options(scenes, tmp_path, "run", *how, "lightning.trainer.max_steps=2"))
    cli("train", "--resume", tmp_path / "run", "--gpus", "0", "lightning.trainer.max_steps=4")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    assert last["global_step"] == 4

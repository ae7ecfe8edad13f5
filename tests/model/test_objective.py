"""What training minimizes, against closed forms and diffusers: time steps, weights, a process that ends in noise."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr
from torch.utils.data import default_collate

from cldm.build import create_model
from cldm.data.pairs import PairedImages
from common.errors import InputError
from common.rng import Stream, seed_from
from ldm.models.choices import SOLVERS
from ldm.models.conditions import TextConditions
from ldm.models.objective import min_snr_weight, time_steps
from ldm.models.sampling import sample
from ldm.models.schedule import (
    ends_in_noise,
    make_betas,
    make_scheduler,
    schedule_buffers,
    with_zero_terminal_snr,
)
from tests.conftest import SMALL
from tests.training.test_training import options

BETAS = make_betas(1000, 0.00085, 0.012)
ZERO = with_zero_terminal_snr(BETAS)
DRAWS = [seed_from(i) for i in range(20_000)]


def test_the_weights_are_those_of_the_paper():
    alphas = torch.from_numpy(np.cumprod(1 - BETAS))
    scheduler = make_scheduler("ddim", torch.from_numpy(BETAS))
    snr = compute_snr(scheduler, torch.arange(1000)).double()
    capped = torch.minimum(snr, torch.tensor(5.0))
    for parameterization, expected in (("eps", capped / snr), ("v", capped / (snr + 1)), ("x0", capped)):
        assert torch.allclose(min_snr_weight(alphas, parameterization), expected, rtol=2e-3)
    # one error of the clean latent, whatever is predicted: eps differs by SNR, v by SNR + 1 (Hang et al., appendix)
    at = alphas[[0, 500, 999]]
    ratio = at / (1 - at)
    as_x0 = min_snr_weight(at, "x0", 2.0)
    assert torch.allclose(min_snr_weight(at, "eps", 2.0) * ratio, as_x0)
    assert torch.allclose(min_snr_weight(at, "v", 2.0) * (ratio + 1), as_x0)
    assert as_x0[0] == 2.0


def test_time_steps_are_as_they_were_or_logit_normal():
    assert time_steps(DRAWS, 1000).tolist() == [draw % 1000 for draw in DRAWS]
    for mean, std in ((0.0, 1.0), (0.8, 0.5)):
        t = time_steps(DRAWS, 1000, "logit_normal", mean, std)
        assert t.min() >= 0 and t.max() <= 999
        u = torch.logit((t + 0.5) / 1000)
        assert float(u.mean()) == pytest.approx(mean, abs=0.02) and float(u.std()) == pytest.approx(std, rel=0.02)
        middle = 1000 / (1 + math.exp(-mean))
        assert float((t < middle).float().mean()) == pytest.approx(0.5, abs=0.01)
    ends = time_steps([0, 2**63 - 1], 1000, "logit_normal")
    assert ends.tolist() == [0, 999]
    some = time_steps(DRAWS[5:8], 1000, "logit_normal")  # an image's own draw, whatever else is in the batch
    assert torch.equal(some, time_steps(DRAWS, 1000, "logit_normal")[5:8])


def test_the_process_ends_in_noise_as_diffusers_has_it():
    # diffusers computes in 32 bit: abar is compared, in which errors do not add up
    theirs = 1 - rescale_zero_terminal_snr(torch.from_numpy(BETAS))
    assert np.allclose(np.cumprod(1 - ZERO), torch.cumprod(theirs, 0).numpy(), atol=1e-12)
    assert ZERO[0] == pytest.approx(BETAS[0]) and ZERO[-1] == 1.0
    tables = schedule_buffers(ZERO)
    assert tables["alphas_cumprod"][-1] == 0 and all(torch.isfinite(table).all() for table in tables.values())
    assert ends_in_noise(tables["betas"]) and not ends_in_noise(schedule_buffers(BETAS)["betas"])
    ours = make_scheduler("ddim", tables["betas"], "v").alphas_cumprod
    assert torch.allclose(ours, tables["alphas_cumprod"], atol=1e-5) and ours[-1] == 0


class Gaussian:
    """The exact denoiser of data N(mean, s^2), also where there is nothing but noise."""

    betas = schedule_buffers(ZERO)["betas"]
    alphas = torch.from_numpy(np.cumprod(1 - ZERO))

    def __init__(self, parameterization, mean=0.7, s=0.2):
        self.parameterization, self.mean, self.s, self.seen = parameterization, mean, s, []

    def prepare(self, cond):
        return TextConditions(text=cond["c_crossattn"][0])

    def apply_model(self, x, t, cond):
        self.seen.append(int(t[0]))
        a = self.alphas[t.long()].reshape(-1, 1, 1, 1)
        x = x.double()
        start = self.mean + self.s**2 * a.sqrt() * (x - a.sqrt() * self.mean) / (a * self.s**2 + 1 - a)
        eps = (x - a.sqrt() * start) / (1 - a).sqrt()
        return {"x0": start, "v": a.sqrt() * eps - (1 - a).sqrt() * start}[self.parameterization].float()


@pytest.mark.parametrize("parameterization", ["v", "x0"])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_sampling_begins_at_the_noises_end(sampler, parameterization):
    model = Gaussian(parameterization)
    x_T = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    got = sample(model, {"c_crossattn": [torch.zeros(1, 1, 1)]}, None, x_T, 100, sampler)
    assert model.seen[0] == 999
    assert float(got.mean()) == pytest.approx(0.7, abs=0.02) and float(got.std()) == pytest.approx(0.2, rel=0.15)


def batch_of(scenes, n=4):
    table = str(scenes / "classes.json")
    data = PairedImages(scenes, scenes / "train_set_items.json", 32, 0, "palette", table, multiple_of=16)
    return default_collate([data[i] for i in range(n)])


def model_with(scenes, **options):
    torch.manual_seed(0)
    return create_model(SMALL, classes=str(scenes / "classes.json"), **options)


def test_training_weighs_and_validation_does_not(scenes):
    batch = batch_of(scenes)
    seen = []

    def losses(model, training):
        model.train(training)
        model.apply_model = lambda x, t, cond: seen.append(t) or torch.zeros_like(x)
        return model.batch_losses(batch)

    plain, weighted = model_with(scenes), model_with(scenes, loss_weighting="min_snr")
    expected = losses(plain, True) * min_snr_weight(plain.alphas_cumprod[seen[0]], "v", 5.0)
    assert torch.equal(losses(weighted, True), expected) and not torch.equal(expected, losses(plain, True))
    assert torch.equal(losses(weighted, False), losses(plain, False))
    assert torch.equal(losses(plain, False), losses(plain, True))  # as published: one loss in both modes

    seen.clear()
    normal = model_with(scenes, timestep_sampling="logit_normal", timestep_mean=0.5)
    losses(normal, True), losses(normal, False)
    draws = [seed_from(int(seed), Stream.TIME_STEP) for seed in batch["seed"]]
    assert torch.equal(seen[0], time_steps(draws, 1000, "logit_normal", 0.5, 1.0))
    assert seen[1].tolist() == [draw % 1000 for draw in draws]


def test_noise_is_not_to_be_found_in_noise(scenes):
    with pytest.raises(InputError, match="zero_terminal_snr: true: noise that is found in noise alone"):
        model_with(scenes, zero_terminal_snr=True, parameterization="eps")
    model = model_with(scenes, zero_terminal_snr=True)
    assert ends_in_noise(model.betas) and torch.isfinite(model.train().batch_losses(batch_of(scenes))).all()


def test_the_commands_take_the_recipe(cli, scenes, tmp_path):
    names = ("zero_terminal_snr=true", "loss_weighting=min_snr", "timestep_sampling=logit_normal")
    recipe = [f"model.params.{name}" for name in names]
    line = cli.refused("train", *options(scenes, tmp_path, "no", "model.params.parameterization=eps", *recipe))
    assert "zero_terminal_snr: true: noise that is found in noise alone" in line
    assert "loss_weighting" in cli.refused("train", *options(scenes, tmp_path, "no", "model.params.loss_weighting=snr"))
    cli("train", *options(scenes, tmp_path, "run", *recipe, "lightning.trainer.max_steps=2"))

    run, out = tmp_path / "run", tmp_path / "out"
    what = ["--config", run / "config.yaml", "--ckpt", run / "checkpoints" / "last.ckpt", "--data-root", scenes]
    what += ["--txt-file", scenes / "inference_set_items.json", "--outdir", out, "--gpus", "cpu", "--num-workers", 0]
    only = ["--only", "train_0001_seed_5", "--ddim-steps", 4]
    cli("inference", *what, *only)
    record = json.loads((out / "samples.jsonl").read_text())
    assert record["spacing"] == "trailing" and len(list(out.glob("*.jpg"))) == 1
    plain = ["--config", SMALL, "--classes", scenes / "classes.json"]  # another noise process than the weights'
    assert "noise_schedule" in cli("inference", *what, *only, *plain, code=2)

"""Schedules, solvers and guidance against closed forms."""

import numpy as np
import pytest
import torch

from common.errors import InputError
from ldm.models.guidance import Guidance
from ldm.models.sampling import sample
from ldm.models.schedule import SAMPLERS, make_betas, make_scheduler, schedule_buffers

BETAS = make_betas(1000, 0.00085, 0.012)


class GaussianModel:
    """The exact denoiser of data N(mean, s^2): every solver must follow its probability flow."""

    parameterization = "eps"
    betas = torch.from_numpy(BETAS.astype(np.float32))

    def __init__(self, mean=0.0, s=0.5, parameterization="eps"):
        self.mean, self.s, self.parameterization = mean, s, parameterization
        self.alphas = torch.from_numpy(np.cumprod(1 - BETAS))

    def prepare(self, cond):
        return cond

    def apply_model(self, x, t, cond):
        a = self.alphas[t.long()].reshape(-1, 1, 1, 1)
        noise = 1 - a
        # E[eps | x] for x = sqrt(a) x_0 + sqrt(1 - a) eps
        eps = noise.sqrt() * (x.double() - a.sqrt() * self.mean) / (a * self.s**2 + noise)
        if self.parameterization == "x0":
            return ((x.double() - noise.sqrt() * eps) / a.sqrt()).float()
        if self.parameterization == "v":
            start = (x.double() - noise.sqrt() * eps) / a.sqrt()
            return (a.sqrt() * eps - noise.sqrt() * start).float()
        return eps.float()


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_solvers_reach_the_probability_flows_end(sampler, parameterization):
    # the flow of Gaussian data only scales: x_0 = mean + s (x_T - sqrt(a) mean) / sqrt(a s^2 + 1 - a)
    model = GaussianModel(0.3, 0.5, parameterization)
    x_T = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    got = sample(model, {"c_crossattn": []}, None, x_T, 250, sampler)
    scheduler = make_scheduler(sampler, model.betas, parameterization)
    scheduler.set_timesteps(250)
    a = float(model.alphas[int(scheduler.timesteps[0])])
    if sampler == "euler":  # its first state is noise of the first sigma, in the variance-exploding scaling
        x_T = x_T * float(scheduler.init_noise_sigma) * a**0.5
    expected = 0.3 + 0.5 * (x_T - a**0.5 * 0.3) / (a * 0.25 + 1 - a) ** 0.5
    assert (got - expected).abs().max() < 0.03


def test_schedule_tables():
    tables = schedule_buffers(BETAS)
    assert tables["betas"][0] == pytest.approx(0.00085) and tables["betas"][-1] == pytest.approx(0.012)
    signal, noise = tables["sqrt_alphas_cumprod"], tables["sqrt_one_minus_alphas_cumprod"]
    assert torch.allclose(signal**2 + noise**2, torch.ones(1000))
    product = np.prod(1 - BETAS)
    assert tables["alphas_cumprod"][-1] == pytest.approx(product)
    assert all(t.dtype == torch.float32 and t.shape == (1000,) for t in tables.values())


def test_guidance_is_the_equation():
    class Constant:
        def prepare(self, cond):
            return cond

        def apply_model(self, x, t, cond):
            text = cond["c_crossattn"][0]
            return text.mean((1, 2))[:, None, None, None] * torch.ones(len(text), 1, 2, 2)

    cond, uncond = ({"c_crossattn": [torch.full((3, 1, 1), value)]} for value in (5.0, 2.0))
    x, t = torch.zeros(3, 1, 2, 2), torch.zeros(3)
    for options in ({}, {"split": True}, {"share": False}):
        assert torch.equal(Guidance(Constant(), cond, uncond, 9.0, **options)(x, t), torch.full((3, 1, 2, 2), 29.0))
    assert torch.equal(Guidance(Constant(), cond, uncond, 1.0)(x, t), torch.full((3, 1, 2, 2), 5.0))
    assert torch.equal(Guidance(Constant(), cond, None, 9.0)(x, t), torch.full((3, 1, 2, 2), 5.0))


def test_impossible_options_are_refused():
    model, x = GaussianModel(), torch.zeros(1, 1, 2, 2)
    for options in ({"steps": 0}, {"steps": 2000}, {"sampler": "magic"}, {"sampler": "unipc", "eta": 1.0}):
        with pytest.raises(InputError):
            sample(model, {"c_crossattn": []}, None, x, **{"steps": 5, **options})

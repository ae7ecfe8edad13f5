"""Schedules, solvers and guidance against closed forms."""

import numpy as np
import pytest
import torch

from common.errors import InputError
from common.rng import Stream, seed_from
from ldm.models.choices import CONSISTENCY, SOLVERS, steps_over_image
from ldm.models.conditions import TextConditions
from ldm.models.guidance import ClassifierFreeGuidance, NoGuidance, SplitGuidance
from ldm.models.sampling import sample
from ldm.models.schedule import make_betas, make_scheduler, schedule_buffers

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
@pytest.mark.parametrize("sampler", SOLVERS)
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
    model, x, t = Constant(), torch.zeros(3, 1, 2, 2), torch.zeros(3)
    cond, uncond = (TextConditions(text=torch.full((3, 1, 1), value)) for value in (5.0, 2.0))
    for guided in (ClassifierFreeGuidance, SplitGuidance):
        assert torch.equal(guided(model, cond, uncond, 9.0)(x, t), torch.full((3, 1, 2, 2), 29.0))
    assert torch.equal(NoGuidance(model, cond)(x, t), torch.full((3, 1, 2, 2), 5.0))


class Constant:
    """Predicts the mean of the text, whatever the latent."""

    parameterization, betas = "eps", GaussianModel.betas

    def prepare(self, cond):
        return TextConditions(text=cond["c_crossattn"][0])

    def apply_model(self, x, t, cond):
        assert len(x) == len(t) == len(cond.text)
        return cond.text.mean((1, 2))[:, None, None, None] * torch.ones_like(x)


def test_the_samplers_options_choose_the_guidance():
    model, x_T = Constant(), torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    short, long = ({"c_crossattn": [torch.full((3, length, 1), value)]} for length, value in ((1, 2.0), (3, 5.0)))
    guided = sample(model, long, short, x_T, 5)
    for options in ({"split": True}, {"reuse": False}, {"share": False}, {"guidance": SplitGuidance}):
        assert torch.equal(sample(model, long, short, x_T, 5, **options), guided)
    unguided = sample(model, long, None, x_T, 5)
    assert torch.equal(sample(model, long, short, x_T, 5, guidance_scale=1.0), unguided)
    assert not torch.allclose(guided, unguided)


def test_the_callback_sees_each_step():
    seen = []
    x_T = torch.ones(1, 1, 2, 2)
    end = sample(GaussianModel(), {"c_crossattn": []}, None, x_T, 5, callback=lambda *step: seen.append(step))
    assert [(i, t) for i, t, _ in seen] == [(0, 801), (1, 601), (2, 401), (3, 201), (4, 1)]
    assert torch.equal(seen[-1][2], end) and not torch.equal(seen[0][2], end)


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_predicted_clean_latent_can_be_replaced(sampler, parameterization):
    model, seen = GaussianModel(0.3, 0.5, parameterization), []
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def as_it_is(i, x0):
        seen.append((i, x0))
        return x0

    plain = sample(model, {"c_crossattn": []}, None, x_T, 10, sampler)
    assert torch.equal(sample(model, {"c_crossattn": []}, None, x_T, 10, sampler, correct_x0=as_it_is), plain)
    # E[x_0 | x] = mean + s^2 sqrt(a) (x - sqrt(a) mean) / (a s^2 + 1 - a)
    a = model.alphas[901]
    scheduler = make_scheduler(sampler, model.betas)
    scheduler.set_timesteps(10)
    x = scheduler.scale_model_input(x_T * scheduler.init_noise_sigma, scheduler.timesteps[0])
    assert (seen[0][1] - (0.3 + 0.25 * a.sqrt() * (x - a.sqrt() * 0.3) / (a * 0.25 + 1 - a))).abs().max() < 1e-4
    assert [i for i, _ in seen] == list(range(10))
    # what every step takes for the clean latent is what comes out, but for the noise of the first time step
    target = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(2, -1, -1, -1)
    end = sample(model, {"c_crossattn": []}, None, x_T, 10, sampler, correct_x0=lambda i, x0: target)
    assert (end - target).abs().max() < 0.15


def test_impossible_options_are_refused():
    model, x = GaussianModel(), torch.zeros(1, 1, 2, 2)
    for options in ({"steps": 0}, {"steps": 2000}, {"sampler": "magic"}, {"sampler": "unipc", "eta": 1.0}):
        with pytest.raises(InputError):
            sample(model, {"c_crossattn": []}, None, x, **{"steps": 5, **options})


@pytest.mark.parametrize("sampler", CONSISTENCY)
def test_samplers_of_distilled_models_draw_each_images_own_noise(sampler):
    model, none = GaussianModel(0.3, 0.5), {"c_crossattn": []}
    x_T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    how = {"sampler": sampler, "seeds": [7, 8, 9], **({"eta": 0.3} if sampler == "tcd" else {})}
    together = sample(model, none, None, x_T, 4, **how)
    for i in range(3):
        alone = sample(model, none, None, x_T[i : i + 1], 4, **{**how, "seeds": how["seeds"][i : i + 1]})
        assert torch.equal(alone, together[i : i + 1])
    assert not torch.equal(sample(model, none, None, x_T, 4, **{**how, "seeds": [1, 2, 3]}), together)
    # as diffusers takes such steps by itself, from the noise's end, each with noise of the image's seed and its number
    scheduler, x = make_scheduler(sampler, model.betas), x_T[:1]
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    for i, t in enumerate(scheduler.timesteps):
        extra = {"generator": torch.Generator().manual_seed(seed_from(7, Stream.SAMPLER, i))}
        extra |= {"eta": 0.3} if sampler == "tcd" else {}
        x = scheduler.step(model.apply_model(x, t.expand(1), None), t, x, **extra).prev_sample
    assert torch.equal(x, together[:1])


def test_trajectory_consistency_without_noise_follows_the_flow():
    model = GaussianModel(0.3, 0.5)
    x_T = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    got, a = sample(model, {"c_crossattn": []}, None, x_T, 50, "tcd"), float(model.alphas[999])
    assert (got - (0.3 + 0.5 * (x_T - a**0.5 * 0.3) / (a * 0.25 + 1 - a) ** 0.5)).abs().max() < 0.1


def test_options_that_distilled_models_samplers_do_not_have_are_refused():
    model, x = GaussianModel(), torch.zeros(1, 1, 2, 2)
    for options, says in (
        ({"steps": 51}, "steps 51: must be 1 to 50, with lcm and tcd"),
        ({"spacing": "leading"}, "spacing leading: the time steps of sampler lcm begin at the noise's end"),
        ({"eta": 0.5}, "eta 0.5: only the samplers ddim and tcd take a share of noise"),
    ):
        with pytest.raises(InputError, match=says):
            sample(model, {"c_crossattn": []}, None, x, **{"steps": 5, "sampler": "lcm", **options})


@pytest.mark.parametrize("sampler", SOLVERS)
def test_over_an_image_the_flow_begins_with_the_noised_image(sampler):
    # the same flow as above, from sqrt(a) x_0 + sqrt(1 - a) eps at the first time step that is taken
    model, strength, steps = GaussianModel(0.3, 0.5), 0.4, 250
    start, x_T = torch.randn(2, 1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    got = sample(model, {"c_crossattn": []}, None, x_T, steps, sampler, start=start, strength=strength)
    scheduler = make_scheduler(sampler, model.betas)
    scheduler.set_timesteps(steps)
    a = float(model.alphas[int(scheduler.timesteps[steps - 100])])
    x_t = a**0.5 * start + (1 - a) ** 0.5 * x_T
    expected = 0.3 + 0.5 * (x_t - a**0.5 * 0.3) / (a * 0.25 + 1 - a) ** 0.5
    assert (got - expected).abs().max() < 0.03


@pytest.mark.parametrize("sampler", CONSISTENCY)
def test_over_an_image_consistency_models_take_the_last_steps(sampler):
    seen, model = [], GaussianModel()
    start, x_T = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    sample(model, {}, None, x_T, 4, sampler, start=start, strength=0.5, callback=lambda i, t, x: seen.append(t))
    scheduler = make_scheduler(sampler, model.betas)
    scheduler.set_timesteps(4)
    assert seen == scheduler.timesteps[2:].tolist()


def test_steps_over_an_image_are_those_of_diffusers():
    assert [steps_over_image(50, s) for s in (0.02, 0.3, 0.99, 1)] == [1, 15, 49, 50]
    assert steps_over_image(100, 0.29) == 29
    with pytest.raises(InputError, match="leaves none of 20"):
        steps_over_image(20, 0.04)

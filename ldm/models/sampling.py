"""Sampling latents: a diffusers solver, a guided network, and noise that belongs to each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import InputError
from common.rng import Stream, item_noise, seed_from
from ldm.models.choices import CONSISTENCY, TAKE_ETA, steps_over_image
from ldm.models.conditions import TextConditions
from ldm.models.guidance import ClassifierFreeGuidance, Guidance, NoGuidance, SplitGuidance
from ldm.models.schedule import ends_in_noise, make_scheduler, set_time_steps, spacing_of

Condition = TextConditions | Mapping[str, Sequence[Tensor]]  # or the published dictionary


@torch.no_grad()
def sample(
    model: Any,
    cond: Condition,
    uncond: Condition | None,
    x_T: Tensor,
    steps: int,
    sampler: str = "ddim",
    guidance_scale: float = 9.0,
    eta: float = 0.0,
    seeds: Sequence[int] | None = None,
    progress: bool = False,
    spacing: str = "auto",
    guidance: Callable[..., Guidance] | None = None,
    callback: Callable[[int, int, Tensor], None] | None = None,
    correct_x0: Callable[[int, Tensor], Tensor] | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
    split: bool = False,
    reuse: bool = True,
    share: bool = True,
    start: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Samples latents from noise.

    Args:
        model: LatentDiffusion or ControlLDM.
        cond: the model's conditions, or the published dictionary of them.
        uncond: alike, with the empty text; None for no guidance.
        x_T: standard normal noise (B, C, h, w).
        steps: denoising steps, 1 to half the noise process's: beyond, leading time steps would begin far from noise.
        sampler: one of ``ldm.models.schedule.SAMPLERS``.
        guidance_scale: 1 is no guidance.
        eta: share of fresh noise a step: of DDIM (Song et al. 2021, equation 16), or TCD's gamma (Zheng et al. 2024);
            0 is deterministic. LCM draws all noise anew at each step (Luo et al. 2023, algorithm 1), and takes none.
        seeds: one seed an image for that noise, so that an image does not depend on its batch.
        progress: show a bar.
        spacing: of the time steps, see ``ldm.models.schedule.spacing_of``.
        guidance: makes the guidance, called with model, cond, uncond and scale; ``ClassifierFreeGuidance`` by default.
        callback: called after each step with its number from 0, its time step, and the latent (B, C, h, w) so far.
        correct_x0: called at each step with its number from 0 and the predicted clean latent (B, C, h, w), and gives
            the one to go on with; whatever the network predicts and whichever solver takes it.
        watch: called at each step with its number from 0 and the predicted clean latent (B, C, h, w), as the network
            has it; nothing of the images changes by it.
        split: take ``SplitGuidance``.
        reuse: remember what no time step changes; False computes it anew.
        share: without effect; earlier versions computed what both texts share once.
        start: clean latents (B, C, h, w) to paint over (SDEdit, Meng et al., ICLR 2022): sampling begins with them,
            noised by x_T, at the first of the last ``strength`` x ``steps`` steps. None begins with noise alone.
        strength: above 0 to 1; below 1 with ``start`` alone.

    Returns:
        latents (B, C, h, w), as ``decode_first_stage`` takes them.

    Raises:
        InputError: a sampler, number of steps, eta or strength that cannot be.
    """
    spacing = spacing_of(spacing, steps, ends_in_noise(model.betas), sampler)
    scheduler = make_scheduler(sampler, model.betas, model.parameterization, spacing)
    if eta and sampler not in TAKE_ETA:
        takes = " and ".join(TAKE_ETA)
        raise InputError(f"‹eta› {eta}: only the samplers {takes} take a share of noise; leave it at 0 for {sampler}")
    if start is None and strength != 1:
        raise InputError(f"‹start_strength› {strength:g}: there is no image to paint over")
    set_time_steps(scheduler, steps, x_T.device)
    given = [model.prepare(one) for one in (cond, uncond) if one is not None]
    if not reuse:
        given = [replace(one, remember=False) for one in given]
    predict = guided(model, given[0], None if uncond is None else given[1], guidance_scale, guidance, split)
    precise = torch.promote_types(x_T.dtype, torch.float32)  # the solver's arithmetic, whatever the network's
    times = scheduler.timesteps
    if start is None:
        x = x_T.to(precise) * scheduler.init_noise_sigma
    else:
        times = times[steps - steps_over_image(steps, strength) :]
        if hasattr(scheduler, "set_begin_index"):  # else it asks for no more than the time step
            scheduler.set_begin_index(steps - len(times))
        x = scheduler.add_noise(start.to(precise), x_T.to(precise), times[:1].expand(x_T.shape[0]))
    for i, t in enumerate(tqdm(times, disable=not progress, desc=sampler, leave=False)):
        x_t = scheduler.scale_model_input(x, t)  # sqrt(abar) x_0 + sqrt(1 - abar) eps, however the solver scales x
        prediction = predict(x_t.to(x_T.dtype), t.expand(x.shape[0])).to(precise)
        if watch is not None or correct_x0 is not None:
            abar = scheduler.alphas_cumprod[int(t)].to(x_t)
        if watch is not None:
            watch(i, clean(prediction, x_t, abar, model.parameterization))
        if correct_x0 is not None:
            prediction = corrected(prediction, x_t, abar, model.parameterization, partial(correct_x0, i))
        fresh = [seed_from(seed, Stream.SAMPLER, i) for seed in seeds or range(x.shape[0])]
        x = scheduler.step(prediction, t, x, **_noise(sampler, eta, fresh, x)).prev_sample
        if callback is not None:
            callback(i, int(t), x)
    return x


def _noise(sampler: str, eta: float, seeds: Sequence[int], x: Tensor) -> dict[str, Any]:
    """What a step is given of an image's own noise: diffusers draws from a generator for each, or is given it."""
    if sampler in CONSISTENCY:
        own = {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
        return own if sampler == "lcm" else {**own, "eta": eta}
    return {"eta": eta, "variance_noise": item_noise(seeds, x.shape[1:]).to(x)} if eta else {}


def guided(
    model: Any,
    cond: TextConditions,
    uncond: TextConditions | None,
    scale: float,
    guidance: Callable[..., Guidance] | None = None,
    split: bool = False,
) -> Guidance:
    """The guidance of a sampling, by its arguments; see ``sample``."""
    # another guidance than by the text may have other scales
    if uncond is None or (guidance is None and scale == 1.0):
        return NoGuidance(model, cond)
    if guidance is None:
        guidance = SplitGuidance if split else ClassifierFreeGuidance
    return guidance(model, cond, uncond, scale)


def clean(prediction: Tensor, x_t: Tensor, abar: Tensor, parameterization: str) -> Tensor:
    """The clean latent that a prediction means.

    With x_t = s x_0 + n eps, s = sqrt(abar) and n = sqrt(1 - abar): x_0 = (x_t - n eps) / s, and of v = s eps - n x_0
    it is s x_t - n v.

    Args:
        prediction: of the network (B, C, h, w).
        x_t: noisy latent (B, C, h, w).
        abar: of the time step, below 1; above 0 for ``eps``.
        parameterization: ``eps``, ``v`` or ``x0``.
    """
    signal, noise = abar.sqrt(), (1 - abar).sqrt()
    if parameterization == "x0":
        return prediction
    if parameterization == "v":
        return signal * x_t - noise * prediction
    return (x_t - noise * prediction) / signal


def corrected(
    prediction: Tensor, x_t: Tensor, abar: Tensor, parameterization: str, correct: Callable[[Tensor], Tensor]
) -> Tensor:
    """What the network would have to predict for its clean latent to be the corrected one.

    With x_t = s x_0 + n eps, s = sqrt(abar) and n = sqrt(1 - abar), each prediction is linear in x_0:
    eps = (x_t - s x_0) / n, and v = s eps - n x_0 = (s x_t - x_0) / n. Where nothing is corrected, nothing changes.

    Args:
        prediction: of the network (B, C, h, w).
        x_t: noisy latent (B, C, h, w).
        abar: of the time step, below 1; above 0 for ``eps``.
        parameterization: ``eps``, ``v`` or ``x0``.
        correct: predicted clean latent -> the one that takes its place.
    """
    signal, noise = abar.sqrt(), (1 - abar).sqrt()
    x0 = clean(prediction, x_t, abar, parameterization)
    if parameterization == "x0":
        return correct(x0)
    slope = -1 / noise if parameterization == "v" else -signal / noise
    return prediction + slope * (correct(x0) - x0)

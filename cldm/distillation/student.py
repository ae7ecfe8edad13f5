"""A model that learns to paint in a few steps what another paints in many (Luo et al. 2023)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.distillation.schema import Distillation
from cldm.guidance import ConditionGuidance
from common.errors import InputError
from common.rng import Stream, seed_from
from ldm.models.conditions import TextConditions
from ldm.models.consistency import check_skip, consistency, ddim_step, default_skip, pseudo_huber, skipped_steps
from ldm.models.guidance import ClassifierFreeGuidance, Guidance, NoGuidance
from ldm.models.objective import mean_of_known

_DRAWS = 2.0**63  # a draw is a whole number below this


class ConsistencyStudent(ControlLDM):
    """A TISynth model whose prediction leads from any noisy latent to the clean one at once, guidance included.

    For synthesis it is a ``ControlLDM``, painted with by ``lcm`` or ``tcd`` in 4 to 8 steps, without guidance. It
    learns beside its teacher, see ``cldm.distillation.build``, which no checkpoint of it holds; the target network is
    its running average.

    Args:
        distillation: whose student, and how, see ``cldm.distillation.schema.Distillation``.
        **control_ldm: see ``ControlLDM``.

    Raises:
        InputError: a skip that the samplers do not go with, or a scale of references for a model that reads none.
    """

    def __init__(self, distillation: Mapping[str, Any], **control_ldm: Any) -> None:
        super().__init__(**control_ldm)
        self.distillation = Distillation(**distillation)
        self.skip = self.distillation.skip or default_skip(len(self.betas))
        check_skip(self.skip, len(self.betas))
        if not self.fuses and self.distillation.reference_scale != 1:
            scale = self.distillation.reference_scale
            raise InputError(f"distillation: reference_scale: {scale:g}: this model reads no reference; leave it at 1")
        if self.ema_decay is None:
            raise InputError("model: use_ema: false: a student's target network is its running average")
        self._teacher: tuple[ControlLDM, ...] = ()  # in a tuple, so that it is no part of this module's weights

    @property
    def teacher(self) -> ControlLDM:
        """The frozen model that is learned from; there is none but in a distillation."""
        return self._teacher[0]

    def learn_from(self, teacher: ControlLDM) -> None:
        """Takes a model as teacher; it is frozen, and shares the first stage and the text encoder, which are alike."""
        teacher.first_stage_model, teacher.cond_stage_model = self.first_stage_model, self.cond_stage_model
        self._teacher = (teacher.requires_grad_(False).eval(),)

    def accelerate(self, compile_networks: bool | str = False, shared_gradients: bool = False) -> None:
        """As of any model, and the teacher's networks as well."""
        super().accelerate(compile_networks, shared_gradients)
        for teacher in self._teacher:
            teacher.accelerate(compile_networks, shared_gradients)

    def on_fit_start(self) -> None:
        """Brings the teacher's networks to this module's device; Lightning does not know of them."""
        for network in (*self.teacher.branches, self.teacher.model):
            network.to(self.device)

    # ---- the loss

    def further_draws(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The guidance scale w of each image, drawn evenly from its range (section 4.2): ``scale`` (B, 1, 1, 1)."""
        low, high = self.distillation.scale[0], self.distillation.scale[-1]
        if low == high:
            return {"scale": low}
        shares = [seed_from(seed, Stream.GUIDANCE_SCALE) / _DRAWS for seed in seeds]
        scale = low + (high - low) * torch.tensor(shares, device=self.device)
        return {"scale": scale[:, None, None, None]}

    def p_losses(
        self,
        x_start: Tensor,
        cond: TextConditions | Mapping[str, Any],
        t: Tensor,
        noise: Tensor,
        known: Tensor | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Distance of f(x_(n+k), t_(n+k)) from the target network's f(x_n, t_n), one number an image (B,).

        Equation 17. x_n is the teacher's: one guided step of DDIM from x_(n+k).

        Args:
            x_start: scaled latent (B, C, h, w).
            cond: conditions of ``apply_model``.
            t: time steps (B,), which are rounded up to those of the teacher's steps.
            noise: standard normal (B, C, h, w).
            known: see ``ControlLDM.p_losses``.
            scale: of the teacher's guidance by the text, one number or (B, 1, 1, 1); 1 is none.
        """
        # Features that conditions remember belong to one network; here are three.
        cond = replace(self.prepare(cond), remember=False)
        t, before = skipped_steps(t, self.skip, len(self.betas))
        abar, abar_before = self._abar(t), self._abar(before)
        x_t = self.q_sample(x_start, t, noise)
        with torch.no_grad():
            guided = self._guidance(cond, scale)(x_t, t).float()
            x_before = ddim_step(guided, x_t, abar, abar_before, self.parameterization)
            # validation asks the averages already; to swap them again would bring back the others
            with self.ema_scope() if self.training else contextlib.nullcontext():
                target = self.clean_at_once(x_before, before, cond)
        # Autocast keeps the averages in 16 bit, which now would be taken for the weights, without their gradients.
        torch.clear_autocast_cache()
        errors = pseudo_huber(self.clean_at_once(x_t, t, cond) - target, self.distillation.huber_c)
        return mean_of_known(errors, known)

    def clean_at_once(self, x_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """The consistency function f(x_t, t) of this network: noisy latent (B, C, h, w) -> clean one, in 32 bit."""
        return consistency(self.apply_model(x_t, t, cond).float(), x_t, t, self._abar(t), self.parameterization)

    def _abar(self, t: Tensor) -> Tensor:
        abar: Tensor = self.alphas_cumprod[t][:, None, None, None]  # type: ignore[index]
        return abar

    def _guidance(self, cond: Conditions, scale: float | Tensor) -> Guidance:
        """The teacher's guidance, as a synthesis with these scales has it."""
        of = self.distillation
        by_text = of.mask_scale == 1 and of.reference_scale == 1
        if by_text and not isinstance(scale, Tensor) and scale == 1:
            return NoGuidance(self.teacher, cond)
        scales: dict[str, Any] = {"mask_scale": of.mask_scale, "reference_scale": of.reference_scale}
        make: Callable[..., Guidance] = ClassifierFreeGuidance if by_text else partial(ConditionGuidance, **scales)
        make = partial(make, rescale=of.guidance_rescale)
        return make(self.teacher, cond, self.without_text(cond), scale)

"""Floating-point operations of a synthesis, counted without weights: what each saving saves of the published way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cldm.benchmark.timing import count_flops
from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.synthesis.guiding import guidance_of, sparing, time_steps_of
from cldm.synthesis.options import SamplingOptions
from ldm.models.guidance import ClassifierFreeGuidance, NoGuidance

TOKENS = 77  # of a text


class _InShapes:
    """A model without memory for its weights: guidance reads the time step, its networks take shapes alone."""

    def __init__(self, model: ControlLDM) -> None:
        self.model_of_shapes = model
        self.betas = torch.linspace(0.001, 0.01, len(model.betas))  # in which number counts alone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model_of_shapes, name)

    def apply_model(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See ``ControlLDM.apply_model``."""
        return self.model_of_shapes.apply_model(x, t.to(x.device), cond)


@torch.no_grad()
def synthesis_flops(model: ControlLDM, options: SamplingOptions, height: int, width: int) -> int:
    """Operations of one image: all denoising steps and the decoding; without texts and reference, encoded once.

    Args:
        model: on the device ``meta``, see ``cldm.build.outline``.
        options: how it is made.
        height: of the image in pixels.
        width: alike.
    """

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    latent = (model.channels, height // model.factor, width // model.factor)
    text = empty(TOKENS, model.model.diffusion_model.transformer_options["context_dim"])
    reference = None if model.ssl_stage_model is None else empty(*latent)
    cond = Conditions(mask=empty(model.control_model.hint_channels, height, width), reference=reference, text=text)
    view: Any = _InShapes(model)
    make = guidance_of(view, options) or (ClassifierFreeGuidance if options.scale != 1 else None)
    part, x = sparing(view, options), empty(*latent)
    guided = NoGuidance(part, cond) if make is None else make(part, cond, cond.with_text(text.clone()), options.scale)

    times = time_steps_of(view, options)

    def work() -> None:
        for t in times:
            guided(x, torch.tensor([t]))
        model.decode_first_stage(x)

    return count_flops(work)

"""Guidance with a scale for each condition, and branches that act in a part of the denoising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cldm.conditions import Conditions
from ldm.models.guidance import ComposedGuidance, Guidance


class ConditionGuidance(ComposedGuidance):
    """Adds reference, mask and text one after the other, each with its scale (Brooks et al. 2023, equation 3).

    eps = eps(-, -, -) + s_reference (eps(r, -, -) - eps(-, -, -)) + s_mask (eps(r, m, -) - eps(r, -, -))
    + s_text (eps(r, m, t) - eps(r, m, -)). With 1 for reference and mask this is classifier-free guidance by the text.

    Args:
        model: has ``apply_model(x, t, cond)``, and ``ignored_hint``, see ``ControlLDM``.
        cond: reference (if the model reads any), mask and text.
        uncond: the same without text.
        scale: of the text, one number or one an image (B, 1, 1, 1).
        mask_scale: of the mask.
        reference_scale: of the reference.
        split: one evaluation after the other.
        rescale: share of ``ldm.models.guidance.rescaled`` in the result.
    """

    def __init__(
        self,
        model: Any,
        cond: Conditions,
        uncond: Conditions,
        scale: float | Tensor = 9.0,
        *,
        mask_scale: float = 1.0,
        reference_scale: float = 1.0,
        split: bool = False,
        rescale: float = 0.0,
    ) -> None:
        with_reference = uncond.without_mask(model.ignored_hint)
        chain: list[tuple[Conditions, float | Tensor]]
        chain = [(with_reference, reference_scale), (uncond, mask_scale), (cond, scale)]
        super().__init__(model, with_reference.without_reference(), chain, split, rescale)


@dataclass(frozen=True)
class Acting:
    """How strongly a branch acts, and when.

    Args:
        strength: see ``cldm.fusion.BranchFeature``.
        low: share of the denoising after which it acts: 0 is the beginning, from noise; 1 the end.
        high: share until which it does.
    """

    strength: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def at(self, t: float, total: int) -> float:
        """The strength at time step ``t`` of ``total``: 0 outside of its span."""
        return self.strength if self.low <= 1 - t / total <= self.high else 0.0


class SpannedGuidance:
    """Another guidance, whose branches act as they are told; a branch that does not act is not computed.

    Args:
        model: a ``ControlLDM``.
        cond: conditions.
        uncond: the same without text.
        scale: guidance scale.
        make: makes the other guidance, called with model, cond, uncond and scale.
        mask: how the mask branch acts.
        reference: how the reference branch acts.
    """

    def __init__(
        self,
        model: Any,
        cond: Conditions,
        uncond: Conditions,
        scale: float = 9.0,
        *,
        make: Callable[..., Guidance],
        mask: Acting,
        reference: Acting,
    ) -> None:
        self.model, self.cond, self.uncond, self.scale = model, cond, uncond, scale
        self.make, self.mask, self.reference, self.total = make, mask, reference, len(model.betas)
        self._strengths: tuple[float, float] | None = None
        self._now: Guidance

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See ``Guidance``."""
        mask, reference = (acting.at(float(t[0]), self.total) for acting in (self.mask, self.reference))
        if self._strengths != (mask, reference):
            self._strengths = mask, reference
            both = (replace(one, mask_strength=mask, reference_strength=reference) for one in (self.cond, self.uncond))
            self._now = self.make(self.model, *both, self.scale)
        return self._now(x, t)

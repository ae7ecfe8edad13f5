"""Guidance with a scale for each condition: reference, mask and text."""

from __future__ import annotations

from typing import Any

from cldm.conditions import Conditions
from ldm.models.guidance import ComposedGuidance


class ConditionGuidance(ComposedGuidance):
    """Adds reference, mask and text one after the other, each with its scale (Brooks et al. 2023, equation 3).

    eps = eps(-, -, -) + s_reference (eps(r, -, -) - eps(-, -, -)) + s_mask (eps(r, m, -) - eps(r, -, -))
    + s_text (eps(r, m, t) - eps(r, m, -)). With 1 for reference and mask this is classifier-free guidance by the text.

    Args:
        model: has ``apply_model(x, t, cond)``, and ``ignored_hint``, see ``ControlLDM``.
        cond: reference (if the model reads any), mask and text.
        uncond: the same without text.
        scale: of the text.
        mask_scale: of the mask.
        reference_scale: of the reference.
        split: one evaluation after the other.
    """

    def __init__(
        self,
        model: Any,
        cond: Conditions,
        uncond: Conditions,
        scale: float = 9.0,
        *,
        mask_scale: float = 1.0,
        reference_scale: float = 1.0,
        split: bool = False,
    ) -> None:
        with_reference = uncond.without_mask(model.ignored_hint)
        chain = [(with_reference, reference_scale), (uncond, mask_scale), (cond, scale)]
        super().__init__(model, with_reference.without_reference(), chain, split)

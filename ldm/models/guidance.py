"""Guidance: which predictions of the network are made at a step, and how they become one.

A guidance is a callable of noisy latent and time step, made once for a sampling run. It knows the conditions' common
interface (``TextConditions``) and not what they hold: other rules (a scale for each condition, a range of time steps,
features reused between steps) are further classes here, given to ``sample`` by its argument ``guidance``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.models.conditions import TextConditions


class Guidance(Protocol):
    """Noisy latent (B, C, h, w) and time step (B,) -> prediction (B, C, h, w)."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction that the solver takes."""


class NoGuidance:
    """The network's own prediction.

    Args:
        model: has ``apply_model(x, t, cond)``.
        cond: conditions that the model takes.
    """

    def __init__(self, model: Any, cond: Any) -> None:
        self.model, self.cond = model, cond

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See ``Guidance``."""
        return self.model.apply_model(x, t, self.cond)


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """A guided prediction with the spread of the conditional one (Lin et al., WACV 2024, equations 15 and 16).

    Guidance widens a prediction's spread, most of all where the noise process ends in noise alone; images are then
    overexposed, their colors too strong.

    Args:
        guided: prediction (B, C, h, w).
        conditional: what is predicted with all conditions, alike.
        share: of the rescaled prediction in the result; 0: ``guided`` itself. The paper found 0.7 good.
    """
    if not share:
        return guided
    spread, wanted = (one.float().std((1, 2, 3), keepdim=True) for one in (guided, conditional))  # (B, 1, 1, 1)
    return guided * (share * wanted / spread + (1 - share)).to(guided.dtype)


class ClassifierFreeGuidance:
    """eps = eps(uncond) + scale (eps(cond) - eps(uncond)) (Ho & Salimans 2022, equation 6), both in one batch of 2B.

    Args:
        model: has ``apply_model(x, t, cond)``.
        cond: conditions.
        uncond: the same without text.
        scale: guidance scale, or one an image (B, 1, 1, 1); 1 is no guidance.
        rescale: share of ``rescaled`` in the result.
    """

    def __init__(
        self,
        model: Any,
        cond: TextConditions,
        uncond: TextConditions,
        scale: float | Tensor = 9.0,
        *,
        rescale: float = 0.0,
    ) -> None:
        self.model, self.scale, self.rescale = model, scale, rescale
        self.both = uncond.joined(cond)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See ``Guidance``."""
        predictions = self.model.apply_model(torch.cat([x, x]), torch.cat([t, t]), self.both)
        unconditional, conditional = predictions.chunk(2)
        return rescaled(unconditional + self.scale * (conditional - unconditional), conditional, self.rescale)


class SplitGuidance:
    """Classifier-free guidance with one evaluation after the other: half the memory, and slower; arguments alike."""

    def __init__(
        self, model: Any, cond: TextConditions, uncond: TextConditions, scale: float = 9.0, *, rescale: float = 0.0
    ) -> None:
        self.scale, self.rescale = scale, rescale
        self.conditional, self.unconditional = NoGuidance(model, cond), NoGuidance(model, uncond)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See ``Guidance``."""
        unconditional, conditional = self.unconditional(x, t), self.conditional(x, t)
        return rescaled(unconditional + self.scale * (conditional - unconditional), conditional, self.rescale)


class IntervalGuidance:
    """Guidance at some noise levels alone, elsewhere one prediction (Kynkäänniemi et al. 2024).

    Where noise is strong, guidance costs variety, and where it is weak, it changes nothing any more.

    Args:
        model: has ``apply_model(x, t, cond)`` and ``betas``.
        cond: all conditions: what is predicted with outside.
        uncond: the same without text.
        scale: guidance scale.
        make: makes the guidance inside, called with model, cond, uncond and scale.
        low: of the levels inside, as shares of the time steps: 0 is the clean image, 1 noise alone; included.
        high: alike.
    """

    def __init__(
        self,
        model: Any,
        cond: TextConditions,
        uncond: TextConditions,
        scale: float = 9.0,
        *,
        make: Callable[..., Guidance] = ClassifierFreeGuidance,
        low: float,
        high: float,
    ) -> None:
        self.inside, self.outside = make(model, cond, uncond, scale), NoGuidance(model, cond)
        self.low, self.high, self.total = low, high, len(model.betas)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See ``Guidance``."""
        guided = self.low <= float(t[0]) / self.total <= self.high
        return (self.inside if guided else self.outside)(x, t)


class ComposedGuidance:
    """A scale for each of several conditions, which are added one after the other (Brooks et al. 2023, equation 3).

    eps = eps_0 + sum over k of s_k (eps_k - eps_(k-1)), where eps_k is predicted with the first k of them. A prediction
    that takes no part is not made: scales of 1 at the beginning, and equal ones in a row, make one difference of it.

    Args:
        model: has ``apply_model(x, t, cond)``.
        without: none of the conditions.
        chain: what has one more of them each, with that one's scale s_k, a number or one an image (B, 1, 1, 1); the
            last has them all.
        split: one evaluation after the other: less memory, and slower.
        rescale: share of ``rescaled`` in the result.
    """

    def __init__(
        self,
        model: Any,
        without: TextConditions,
        chain: Sequence[tuple[TextConditions, float | Tensor]],
        split: bool = False,
        rescale: float = 0.0,
    ) -> None:
        self.model, self.split, self.rescale = model, split, rescale
        self.conditions, self.scales = [without], list[float | Tensor]()
        for cond, scale in chain:
            if not self.scales and _same(scale, 1.0):  # eps_0 + 1 (eps_1 - eps_0)
                self.conditions = [cond]
            elif self.scales and _same(scale, self.scales[-1]):  # s (eps_1 - eps_0) + s (eps_2 - eps_1)
                self.conditions[-1] = cond
            else:
                self.conditions.append(cond)
                self.scales.append(scale)
        self.joined = reduce(lambda first, second: first.joined(second), self.conditions)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See ``Guidance``."""
        n = len(self.conditions)
        if self.split:
            predictions = [self.model.apply_model(x, t, cond) for cond in self.conditions]
        else:
            predictions = list(self.model.apply_model(torch.cat([x] * n), torch.cat([t] * n), self.joined).chunk(n))
        result = predictions[0]
        for scale, before, after in zip(self.scales, predictions, predictions[1:], strict=False):
            result = result + scale * (after - before)
        return rescaled(result, predictions[-1], self.rescale)


def _same(scale: float | Tensor, other: float | Tensor) -> bool:
    """Whether two scales are one number; those of an image each are not looked into."""
    return not isinstance(scale, Tensor) and not isinstance(other, Tensor) and scale == other

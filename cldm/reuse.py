"""Encoders that run at some of the denoising steps alone ("Faster Diffusion", Li et al., NeurIPS 2024).

From one step to the next, what the encoders give changes far less than what the decoder makes of it.
At a key step k all networks run. At the steps t until the next one,

    eps(x_t, t) = decoder(encoders(x_k, k), t):

the decoder reads the time step, and what was kept of the key step: the features of both branches and of the U-Net's
encoder, and the keys and values that all-in-attention makes of them. It reads nothing of x_t, so that the decoders of
these steps may run as one batch; the solver takes their predictions one after the other, whichever solver it is. In the
gentler form the two branches alone are kept, and the U-Net runs as a whole at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cldm.conditions import Conditions
from cldm.control_ldm import BranchFeatures, ControlLDM
from cldm.fusion import BranchFeature

# The key steps of the paper's experiments with DDIM at 50 steps: dense where features change fast, in the first ones.
EARLY = (0, 1, 2, 3, 5, 10, 15, 25, 35)


def key_steps(words: Sequence[str], steps: int) -> list[int]:
    """The numbers of the key steps, from 0, which is always one.

    Args:
        words: ``early`` (the paper's, as shares of its 50 steps), ``every-N``, or numbers.
        steps: of the denoising.
    """
    if words[0] == "early":
        chosen = {number * steps // 50 for number in EARLY}
    elif words[0].startswith("every-"):
        chosen = set(range(0, steps, int(words[0].removeprefix("every-"))))
    else:
        chosen = {int(word) for word in words}
    return sorted({0} | {step for step in chosen if step < steps})


@dataclass(eq=False)
class _Kept:
    """What one conditions' key step gave, and the predictions that were made of it ahead of their steps."""

    cond: Conditions
    step: int
    features: tuple[BranchFeatures, BranchFeatures]
    skips: list[Tensor] = field(default_factory=list)
    predictions: dict[int, Tensor] = field(default_factory=dict)


class EncoderReuse:
    """A model, for one sampling run, whose encoders run at key steps alone; for the rest it is the model.

    Each image's prediction is its own, whatever the batch and however many steps are decoded at once.

    Args:
        model: the model.
        times: the time steps of the run, the noisiest first.
        keys: numbers of the key steps; a prediction at any other step belongs to the last of them. Where conditions
            change between steps (guided and not, a branch that ceases to act) must be one.
        whole: the U-Net's encoder is kept, too; False keeps the branches alone.
        at_once: steps whose decoders run in one batch; memory grows with them. Only for ``whole``.
    """

    def __init__(
        self, model: ControlLDM, times: Sequence[float], keys: Sequence[int], whole: bool = True, at_once: int = 1
    ) -> None:
        self.model, self.times, self.whole, self.at_once = model, list(times), whole, at_once
        self._step = {time: i for i, time in enumerate(self.times)}
        starts = sorted({0, *keys})
        self._stretch = [max(key for key in starts if key <= i) for i in range(len(self.times))]
        self._kept: dict[int, _Kept] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def stretches(self) -> list[range]:
        """The numbers of the steps from each key step to the next."""
        starts = sorted(set(self._stretch))
        return [range(*pair) for pair in zip(starts, [*starts[1:], len(self.times)], strict=True)]

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """See ``ControlLDM.apply_model``; of an evaluation at one of the run's time steps, the same for all images."""
        i = self._step[float(t[0])]
        start = self._stretch[i]
        self._kept = {key: kept for key, kept in self._kept.items() if kept.step >= start}  # frees what is over
        kept = self._kept.get(id(cond))
        if kept is None:
            kept = self._kept[id(cond)] = self._encode(i, x_noisy, cond)
        if not self.whole:
            return self.model.model.diffusion_model(x_noisy, self._time(i, 1, x_noisy), cond.context, *kept.features)
        if i not in kept.predictions:
            together = self._stretch[i : i + self.at_once].count(start)
            kept.predictions.update(enumerate(self._decode(i, together, x_noisy, kept), i))
        return kept.predictions.pop(i)

    def _time(self, i: int, steps: int, x: Tensor) -> Tensor:
        """The time steps of so many steps from ``i``, for each the batch's images (steps B,)."""
        return torch.tensor(self.times[i : i + steps], device=x.device).repeat_interleave(len(x))

    def _encode(self, i: int, x: Tensor, cond: Conditions) -> _Kept:
        t, unet = self._time(i, 1, x), self.model.model.diffusion_model
        kept = _Kept(cond, i, self.model.branch_features(x, t, cond, keep=True))
        if self.whole:
            kept.skips = list(unet.encode(x, unet.embed_time(t, x.dtype), cond.context))
        return kept

    def _decode(self, i: int, steps: int, x: Tensor, kept: _Kept) -> Sequence[Tensor]:
        """The predictions of so many steps from ``i``, each (B, C, h, w)."""
        context, features, skips = kept.cond.context, kept.features, kept.skips
        if steps > 1:
            context = context.repeat(steps, 1, 1) if isinstance(context, Tensor) else context.repeated(steps)
            features = _repeated(features[0], steps), _repeated(features[1], steps)
            skips = [skip.repeat(steps, 1, 1, 1) for skip in skips]
        predictions = self.model.model.diffusion_model(x, self._time(i, steps, x), context, *features, skips=skips)
        return predictions.chunk(steps)


def _repeated(features: BranchFeatures, steps: int) -> BranchFeatures:
    if features is None:
        return None
    return [feature.repeated(steps) for feature in features if isinstance(feature, BranchFeature)]

"""Classifier-free guidance: how two predictions become one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.modules.encoders import as_long

Condition = dict[str, list[Tensor]]


class Guidance:
    """Guided prediction eps = eps(uncond) + scale * (eps(cond) - eps(uncond)) (Ho & Salimans 2022, equation 6).

    Both predictions come from one batch. Where the conditions differ in the text alone, what precedes the first text
    attention is computed once for both.

    Args:
        model: has ``apply_model(x, t, cond)`` and ``prepare(cond)``.
        cond: lists of tensors by name, ``c_crossattn`` among them.
        uncond: alike; None samples without guidance.
        scale: guidance scale; 1 is no guidance.
        split: two evaluations of half the batch (less memory).
        reuse: compute what no time step changes once (hint features, the text's keys and values).
        share: compute once what both conditions share.
    """

    def __init__(
        self,
        model: Any,
        cond: Condition,
        uncond: Condition | None = None,
        scale: float = 9.0,
        split: bool = False,
        reuse: bool = True,
        share: bool = True,
    ) -> None:
        self.model, self.scale = model, scale
        prepare = model.prepare if reuse else lambda cond: cond
        guided = uncond is not None and scale != 1.0
        self.repeat = 1
        if not guided:
            self.conditions = [prepare(cond)]
        elif split:
            self.conditions = [prepare(uncond), prepare(cond)]
        else:
            assert uncond is not None
            cond, uncond = _texts_as_long(cond, uncond)
            joint, differs = _join(uncond, cond)
            if not (share and differs == {"c_crossattn"}):
                # the latent is repeated here, not inside the network where the text first matters
                joint = {name: [torch.cat([a, b]) for a, b in _pairs(uncond[name], cond[name])] for name in cond}
                self.repeat = 2
            self.conditions = [prepare(joint)]
        self.guided = guided

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy latent (B, C, h, w) and time step (B,) -> guided prediction (B, C, h, w)."""
        if self.repeat > 1:
            x, t = torch.cat([x] * self.repeat), torch.cat([t] * self.repeat)
        predictions = [self.model.apply_model(x, t, condition) for condition in self.conditions]
        if not self.guided:
            return predictions[0]
        unconditional, conditional = predictions if len(predictions) == 2 else predictions[0].chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def _texts_as_long(cond: Condition, uncond: Condition) -> tuple[Condition, Condition]:
    """Both conditions with texts of one length; texts of more windows than the empty one's are longer."""
    texts = [sum(tensor.shape[1] for tensor in one["c_crossattn"]) for one in (cond, uncond)]
    if texts[0] == texts[1]:
        return cond, uncond
    longer = as_long([torch.cat(one["c_crossattn"], 1) for one in (cond, uncond)])
    return {**cond, "c_crossattn": [longer[0]]}, {**uncond, "c_crossattn": [longer[1]]}


def _pairs(first: list[Tensor], second: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(first, second, strict=True))


def _join(uncond: Condition, cond: Condition) -> tuple[Condition, set[str]]:
    """Doubles the batch of the tensors that differ; also returns their names."""
    joint: Condition = {}
    differs = set()
    for name, tensors in cond.items():
        if all(a is b or torch.equal(a, b) for a, b in _pairs(uncond[name], tensors)):
            joint[name] = tensors
        else:
            joint[name] = [torch.cat([a, b]) for a, b in _pairs(uncond[name], tensors)]
            differs.add(name)
    return joint, differs

"""What a segmentor's scores of classes mean: logits for most; for some, such as GSS-FF's votes, probabilities.

A segmentor, or its decode head, that answers with probabilities has ``gives_probabilities(meta)``, which says so for a
sample's meta information.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LEAST = 1e-6
"""A probability below this counts as this: a vote of 0 has no logarithm."""


def gives_probabilities(model: nn.Module, meta: dict[str, Any] | None = None) -> bool:
    """Whether a segmentor's scores are probabilities.

    Args:
        model: a segmentor of mmseg.
        meta: meta information of a sample.
    """
    parts: tuple[Any, ...] = (model, getattr(model, "decode_head", None))
    return any(part.gives_probabilities(meta or {}) for part in parts if hasattr(part, "gives_probabilities"))


def probabilities_of(model: nn.Module, sample: Any) -> Tensor:
    """Probabilities (C, H, W) of one of mmseg's samples; of a binary head the single one (1, H, W)."""
    scores: Tensor = sample.seg_logits.data
    if len(scores) == 1:
        return scores
    return scores.float() if gives_probabilities(model, sample.metainfo) else scores.float().softmax(0)


def logits_of(model: nn.Module, sample: Any) -> Tensor:
    """Logits (C, H, W), C at least 2, of one of mmseg's samples.

    A binary head's single probability p becomes 0 and log(p / (1 - p)); probabilities become their logarithms.
    """
    scores: Tensor = sample.seg_logits.data
    if len(scores) == 1:
        logit = torch.logit(scores, eps=1e-7)
        return torch.cat([torch.zeros_like(logit), logit])
    return scores.float().clamp_min(LEAST).log() if gives_probabilities(model, sample.metainfo) else scores

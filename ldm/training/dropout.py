"""What a training step drops."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from common.rng import Stream, seed_from


def seed_dropout(model: nn.Module, seeds: Iterable[int]) -> None:
    """Lets what a step drops follow from the seeds of its items alone, if the model drops anything.

    So it is the same in a run that was stopped and goes on, and another one in each of several processes.
    """
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        torch.manual_seed(seed_from(*map(int, seeds), Stream.DROPOUT))

"""Running average of the weights that train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """Exponential moving average w_avg <- w_avg + (1 - d) (w - w_avg) (Ho et al. 2020, appendix B).

    The rate d is min(decay, (1 + n) / (10 + n)) after n updates, so that the first averages follow the weights quickly.
    Averages are buffers named after their parameter, without dots and without a leading ``model.``, as published.

    Args:
        parameters: (name, parameter) pairs to average.
        decay: d, 0 to 1.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        super().__init__()
        self.decay_rate = decay
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int64))
        self.num_updates: Tensor
        self._sources = dict(parameters)
        self._names = {name: name.removeprefix("model.").replace(".", "") for name in self._sources}
        for name, parameter in self._sources.items():
            self.register_buffer(self._names[name], parameter.detach().clone())

    def _averages(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names.values()]

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average towards the current weights."""
        n = int(self.num_updates)
        decay = min(self.decay_rate, (1 + n) / (10 + n))
        self.num_updates += 1
        torch._foreach_lerp_(self._averages(), [p.detach() for p in self._sources.values()], 1.0 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block, the parameters hold their averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._sources.values(), self._averages(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

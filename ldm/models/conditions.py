"""What an image is made after: the conditions of the denoiser, as one value."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm.modules.attention import CachedContext, Context
from ldm.modules.encoders import as_long

C = TypeVar("C", bound="TextConditions")


@dataclass(kw_only=True, eq=False)
class TextConditions:
    """A batch's texts; subclasses add tensors of the same batch.

    What no time step changes is computed once and remembered, while no gradients are on: make a new value when the
    model's weights change.

    Args:
        text: text embedding (B, L, D).
        remember: False computes everything anew at each step.
    """

    text: Tensor
    remember: bool = True

    def __post_init__(self) -> None:
        self._context = CachedContext(self.text)

    @property
    def remembers(self) -> bool:
        """Whether results are kept: never in training, where a step changes the weights."""
        return self.remember and not torch.is_grad_enabled()

    @property
    def context(self) -> Context:
        """The text as attention takes it, with its keys and values where they are kept."""
        return self._context if self.remembers else self.text

    def with_text(self: C, text: Tensor) -> C:
        """The same with another text embedding (B, L, D)."""
        return replace(self, text=text)

    def joined(self: C, other: C) -> C:
        """Both along the batch (2B), this one's images first; the shorter texts are repeated to the others' length."""
        both: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            pair = getattr(self, name), getattr(other, name)
            both[name] = torch.cat(pair) if isinstance(pair[0], Tensor) and name != "text" else pair[0]
        both["text"] = torch.cat(as_long([self.text, other.text]))
        return type(self)(**both)

"""TISynth's three conditions: mask, reference and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cldm.control import ControlNet
from ldm.models.conditions import TextConditions

Published = Mapping[str, Sequence[Tensor]]  # {c_concat: [hint], c_crossattn: [text], c_ssl: [latent]}


@dataclass(kw_only=True, eq=False)
class Conditions(TextConditions):
    """What the images of a batch are made after; see ``TextConditions`` for what is remembered.

    Args:
        mask: the masks' encoding, the mask branch's hint (B, C', H, W) in [0, 1].
        reference: the references' scaled latents, the reference branch's hint (B, C, h, w); None where the model has no
            reference branch.
        text: text embedding (B, L, D).
        remember: False computes everything anew at each step.
        mask_strength: of what the mask branch says, see ``cldm.fusion.BranchFeature``; at 0 it is not computed.
        reference_strength: of the reference branch, alike.
    """

    mask: Tensor
    reference: Tensor | None = None
    mask_strength: float = 1.0
    reference_strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._features: dict[str, Tensor] = {}

    @classmethod
    def from_published(cls, cond: Published) -> Conditions:
        """From the published dictionary; several tensors of one condition are joined along their second axis."""
        reference = torch.cat(list(cond["c_ssl"]), 1) if "c_ssl" in cond else None
        text = torch.cat(list(cond["c_crossattn"]), 1)
        return cls(mask=torch.cat(list(cond["c_concat"]), 1), reference=reference, text=text)

    def without_mask(self, ignored: float) -> Conditions:
        """The same where no mask says anything: all pixels are to be ignored, which the hint shows as ``ignored``."""
        return replace(self, mask=torch.full_like(self.mask, ignored))

    def without_reference(self) -> Conditions:
        """The same without what references show: latents of zeros, as training has them for hidden references."""
        return self if self.reference is None else replace(self, reference=torch.zeros_like(self.reference))

    def mask_features(self, branch: ControlNet) -> Tensor | None:
        """The mask's hint features (B, model_channels, h, w), if they are remembered; else the branch encodes its hint.

        In training it does so within its own forward pass, as wrappers of it (``torch.compile``, FSDP) need.
        """
        return self._remembered("mask", branch, self.mask)

    def reference_features(self, branch: ControlNet) -> Tensor | None:
        """The reference's hint features, alike."""
        assert self.reference is not None
        return self._remembered("reference", branch, self.reference)

    def _remembered(self, name: str, branch: ControlNet, hint: Tensor) -> Tensor | None:
        if not self.remembers:
            return None
        if name not in self._features:
            self._features[name] = branch.encode_hint(hint)
        return self._features[name]

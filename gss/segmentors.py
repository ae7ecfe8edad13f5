"""Segmentors around the GSS heads: a frozen backbone, several test domains, and the reconstruction check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from common.errors import InputError
from common.images import IGNORE
from gss.dvae import DVAE
from gss.maskige import Maskige
from gss.mseg import class_map, domain_classes, read_taxonomy
from gss.palette import load_palette
from gss.roundtrip import round_trip


@MODELS.register_module()
class GenerativeEncoderDecoder(EncoderDecoder):
    """``EncoderDecoder`` whose backbone can be frozen whatever its type, as GSS-FT-W needs it.

    Args:
        freeze_backbone: whether the backbone stays in eval mode and gets no gradient.
        **kwargs: ``EncoderDecoder`` arguments.
    """

    def __init__(self, *, freeze_backbone: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> GenerativeEncoderDecoder:
        """Training mode, for all but a frozen backbone."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def extract_feat(self, inputs: Tensor) -> Any:
        """Feature maps of images (B, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            return super().extract_feat(inputs)


@MODELS.register_module()
class MultiDomainEncoderDecoder(GenerativeEncoderDecoder):
    """A segmentor of universal classes, tested on data sets with classes of their own (MSeg).

    A test set's class gets the sum of the probabilities of the universal classes that belong to it.

    Args:
        taxonomy: file, see ``read_taxonomy``; without it results are universal classes.
        domains: class names, in order, of each test set by its column in the taxonomy; or the columns alone, whose
            classes the mseg-api lists beside the taxonomy (see ``gss.mseg``).
        domain: the test set of samples whose meta information has no field ``domain``; None for universal classes.
        **kwargs: ``GenerativeEncoderDecoder`` arguments.

    Raises:
        InputError: the taxonomy is missing, or does not fit the head, a domain or a class.
    """

    def __init__(
        self,
        *,
        taxonomy: str | None = None,
        domains: dict[str, list[str]] | Sequence[str] | None = None,
        domain: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.domain = domain
        self.maps: dict[str, Tensor] = {}
        if domain is not None and (taxonomy is None or domain not in (domains or {})):
            raise InputError(f"domain: {domain} needs taxonomy, and its class names in domains")
        if taxonomy is None:
            return
        universal, columns = read_taxonomy(taxonomy)
        if len(universal) != self.num_classes:
            raise InputError(f"taxonomy {taxonomy}: {len(universal)} universal classes, num_classes={self.num_classes}")
        for name, classes in domain_classes(taxonomy, domains or {}).items():
            whole = not isinstance(domains, dict)
            self.maps[name] = class_map(columns, name, classes, taxonomy, whole)

    @property
    def predicted_classes(self) -> int:
        """Number of classes that are told apart: the domain's, where there is one."""
        return self.maps[self.domain].shape[1] if self.domain in self.maps else self.num_classes

    def gives_probabilities(self, meta: dict[str, Any]) -> bool:
        """Whether ``predict`` returns a sample's probabilities: of a domain's classes; see ``segmentation.scores``."""
        return meta.get("domain", self.domain) is not None

    def inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Class scores (B, N, H, W): of the samples' domain where there is one, else the universal classes' scores."""
        scores = super().inference(inputs, batch_img_metas)
        names = {meta.get("domain", self.domain) for meta in batch_img_metas}
        if len(names) > 1:
            raise InputError(f"domain: a batch mixes {sorted(map(str, names))}; use one test set a batch")
        name = names.pop()
        if name is None:
            return scores
        if name not in self.maps:
            raise InputError(f"domain: {name} is none of {', '.join(self.maps) or '(no taxonomy given)'}")
        probabilities = (
            self.decode_head.probabilities(scores) if hasattr(self.decode_head, "probabilities") else scores.softmax(1)
        )
        return torch.einsum("bnhw,nm->bmhw", probabilities, self.maps[name].to(probabilities))


@MODELS.register_module()
class NoneBackbone(BaseModule):
    """No image model: passes its input on."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``."""
        return x


@MODELS.register_module()
class ReconstructionHead(BaseModule):
    """Mask -> maskige -> tokens -> maskige -> mask: the best that GSS-FF can reach with a palette and a dVAE.

    Args:
        palette: see ``load_palette``.
        num_classes: N.
        d_vae: ``DVAE`` arguments.
        scale: whole number by which masks are enlarged first; 2 is what the heads do at stride 4.
        ignore_index: label of pixels to ignore.
    """

    align_corners = False

    def __init__(
        self,
        palette: Any,
        num_classes: int,
        d_vae: dict[str, Any] | None = None,
        scale: int = 1,
        ignore_index: int = IGNORE,
    ) -> None:
        super().__init__()
        self.num_classes = self.out_channels = num_classes
        self.ignore_index = ignore_index
        self.maskige = Maskige(load_palette(palette, num_classes), ignore_index)
        self.d_vae = DVAE(**(d_vae or {}))
        self.scale = scale


@MODELS.register_module()
class MaskigeReconstruction(EncoderDecoder):
    """Tests the round trip of the ground truth through palette and dVAE; no image is looked at."""

    def predict(self, inputs: Tensor, data_samples: list[Any] | None = None) -> list[Any]:
        """Puts the reconstructed mask into each sample's ``pred_sem_seg``.

        Raises:
            InputError: samples without ground truth.
        """
        head = self.decode_head
        for sample in data_samples or []:
            if "gt_sem_seg" not in sample:
                raise InputError("reconstruction: a sample has no mask; put LoadAnnotations into the test pipeline")
            labels, _ = round_trip(sample.gt_sem_seg.data, head.maskige, head.d_vae, head.scale)
            sample.set_data({"pred_sem_seg": PixelData(data=labels)})
        return data_samples or []

    def loss(self, inputs: Tensor, data_samples: list[Any]) -> dict[str, Tensor]:
        """There is nothing to train.

        Raises:
            InputError: always.
        """
        raise InputError("reconstruction: nothing to train; use `test`, or scripts/train_dvae.py to train a dVAE")

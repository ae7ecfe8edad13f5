"""The heads of Generative Semantic Segmentation (Chen et al., CVPR 2023): latent prior learning, GSS-FF and GSS-FT-W.

    image --backbone--> features --I_psi--> tokens --dVAE decoder--> maskige --X^-1--> mask        (section 3)

Stage I, latent posterior learning (section 3.2), is over before: ``gss.maskige`` has X and X^-1,
``gss.posterior_learning`` their colors, ``gss.dvae`` encoder and decoder. Stage II, latent prior learning (3.3),
is what a head trains: I_psi, which predicts from the image the tokens that the dVAE makes of the true maskige.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.backbones.swin import SwinBlockSequence
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from common.errors import InputError
from gss.dvae import DVAE, SCALE
from gss.maskige import Maskige, resize_labels
from gss.palette import load_palette
from gss.published import Predicted, read_losses


def _swin(module: SwinBlockSequence, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A Swin stage and its norm on a map (B, C, H, W)."""
    height, width = x.shape[-2:]
    x = module(x.flatten(2).transpose(1, 2), (height, width))[0]  # (B, HW, C)
    return norm(x).transpose(1, 2).unflatten(2, (height, width))


@MODELS.register_module()
class GenerativeSegHeadFF(BaseDecodeHead):
    """GSS-FF: predicts the dVAE tokens of the mask's maskige; X and X^-1 are both fixed (no training in stage I).

    Each loss of ``loss_decode`` says what it compares: ``predicts="tokens"``, or ``"pixels"`` for the auxiliary branch,
    which is there in training alone. Published names are understood, see ``read_losses``.

    Args:
        palette: N + 1 colors, a JSON file, or a name in ``gss/palettes`` (see ``load_palette``).
        d_vae: ``DVAE`` arguments (``weights``, ``encoder``, ``decoder``); published full size by default.
        indice_channel_index: position, among the picked inputs, of the map whose size the tokens have (stride 4).
        pixel_channel_index: the same for the auxiliary pixel branch.
        indice_seg_channel: channels of the Swin stage.
        indice_cls_channel: channels in front of the token classifier.
        swin_num_head: attention heads of the Swin stage.
        swin_depth: its number of blocks.
        swin_window_size: its window, in tokens; maps of other sizes are padded by the stage.
        single_fusion: the pixel classifier reads the token branch's fused map instead of having a branch of its own.
        color_std: None gives one-hot votes, as published; a number (0..255 scale) gives log-likelihoods of the decoded
            colors under a Gaussian around each class's color, for callers that need graded scores.
        img_size: taken for published configurations; sizes come from the data.
        **kwargs: ``BaseDecodeHead`` arguments; ``in_channels`` and ``in_index`` are lists.

    Raises:
        InputError: a palette that does not fit ``num_classes``, dVAE weights missing or of another size, or a loss of
            what is not predicted.
    """

    pixel_branch = True
    predictable: tuple[Predicted, ...] = ("tokens", "pixels")

    def __init__(
        self,
        *,
        palette: str | Sequence[Sequence[int]],
        d_vae: dict[str, Any] | None = None,
        indice_channel_index: int = 1,
        pixel_channel_index: int = 1,
        indice_seg_channel: int = 512,
        indice_cls_channel: int = 2048,
        swin_num_head: int = 16,
        swin_depth: int = 2,
        swin_window_size: int = 7,
        single_fusion: bool = False,
        color_std: float | None = None,
        img_size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        losses, self.predicts = read_losses(kwargs.pop("loss_decode", {"type": "CrossEntropyLoss"}), self.predictable)
        old_name = kwargs.pop("colour_std", None)  # until 1.0
        color_std = old_name if color_std is None else color_std
        super().__init__(input_transform="multiple_select", loss_decode=losses, **kwargs)
        self.maskige = Maskige(load_palette(palette, self.num_classes), self.ignore_index)
        self.indice_channel_index, self.pixel_channel_index = indice_channel_index, pixel_channel_index
        self.single_fusion, self.color_std = single_fusion, color_std

        dvae = DVAE(**(d_vae or {}))
        self.conv_seg = nn.Conv2d(indice_cls_channel, dvae.vocab_size, kernel_size=1)
        self.d_vae = dvae
        self.conv_before_seg = self._conv(indice_seg_channel, indice_cls_channel)
        if self.pixel_branch:
            width = indice_seg_channel if single_fusion else self.channels
            self.conv_seg_pixel = nn.Conv2d(width, self.num_classes, kernel_size=1)
        self.swin_ln = nn.LayerNorm(indice_seg_channel)
        n_levels = len(self.in_channels)
        own_pixel_branch = self.pixel_branch and not single_fusion
        self.convs = nn.ModuleList(self._conv(c, self.channels) for c in self.in_channels)
        if own_pixel_branch:
            self.convs_pixel = nn.ModuleList(self._conv(c, self.channels) for c in self.in_channels)
        self.fusion_conv = self._conv(self.channels * n_levels, indice_seg_channel)
        if own_pixel_branch:
            self.fusion_conv_pixel = self._conv(self.channels * n_levels, self.channels)
        self.transformer_block = self._swin_stage(indice_seg_channel, swin_num_head, swin_depth, swin_window_size)

    def _conv(self, n_in: int, n_out: int) -> ConvModule:
        return ConvModule(n_in, n_out, 1, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)

    @staticmethod
    def _swin_stage(channels: int, heads: int, depth: int, window: int) -> SwinBlockSequence:
        return SwinBlockSequence(channels, heads, feedforward_channels=2 * channels, depth=depth, window_size=window)

    def _fuse(self, inputs: Sequence[Tensor], convs: nn.ModuleList, fusion: ConvModule, index: int) -> Tensor:
        """1 x 1 convolution of each picked level, all at the size of level ``index``, then fused: (B, C, h, w)."""
        picked = self._transform_inputs(inputs)
        size = picked[index].shape[2:]
        maps = [
            resize(conv(x), size=size, mode="bilinear", align_corners=self.align_corners)
            for conv, x in zip(convs, picked, strict=True)
        ]
        return fusion(torch.cat(maps, dim=1))

    def _token_logits(self, fused: Tensor) -> Tensor:
        x = _swin(self.transformer_block, self.swin_ln, fused)  # (B, indice_seg_channel, h, w)
        return self.cls_seg(self.conv_before_seg(x))  # (B, vocabulary, h, w)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Token logits (B, vocabulary, h, w) of the backbone's feature maps; h, w as the stride-4 map."""
        return self._token_logits(self._fuse(inputs, self.convs, self.fusion_conv, self.indice_channel_index))

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list[Any], train_cfg: Any) -> dict[str, Tensor]:
        """Losses of the token and the pixel branch (see ``loss_by_feat``)."""
        fused = self._fuse(inputs, self.convs, self.fusion_conv, self.indice_channel_index)
        token_logits = self._token_logits(fused)
        if not self.single_fusion:
            fused = self._fuse(inputs, self.convs_pixel, self.fusion_conv_pixel, self.pixel_channel_index)
        return self.loss_by_feat((token_logits, self.conv_seg_pixel(fused)), batch_data_samples)

    def token_targets(self, labels: Tensor, pixel_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Targets of both branches (equation 7): the latent posterior q_phi(z | X(c)) of the true mask c, a point.

        Args:
            labels: (B, H, W), 0..N - 1; N, 255 or ``ignore_index`` for ignore; left unchanged.
            pixel_logits: (B, N, 8h, 8w); ignored pixels take their argmax, so that the encoder sees no hole.

        Returns:
            tokens (B, h, w), the vocabulary's size where all of a token's pixels are ignored; and the labels at
            (8h, 8w), ``ignore_index`` for ignore.

        Raises:
            InputError: a label beyond the palette.
        """
        self.maskige.check(labels)
        labels = torch.where(labels >= self.num_classes, self.ignore_index, labels.long())
        labels = resize_labels(labels, cast("tuple[int, int]", tuple(pixel_logits.shape[-2:])))
        ignored = labels == self.ignore_index
        filled = torch.where(ignored, pixel_logits.argmax(1), labels)
        tokens = self.d_vae.tokens(self.maskige.encode(filled))
        counts = F.max_pool2d((~ignored).float(), SCALE) > 0  # any of its pixels
        return tokens.masked_fill(~counts, self.d_vae.vocab_size), labels

    # Latent prior learning, section 3.3: minimize over psi D_KL(q_phi(z | X(c)) || p_psi(z | x)). The posterior q is a
    # point, the token of the dVAE's encoder, so that the divergence is the cross-entropy of the token logits.
    def loss_by_feat(self, seg_logits: tuple[Tensor, Tensor], batch_data_samples: list[Any]) -> dict[str, Tensor]:
        """Losses by name, and both branches' accuracies.

        Args:
            seg_logits: token logits (B, vocabulary, h, w) and pixel logits (B, N, h', w').
            batch_data_samples: mmseg samples with ``gt_sem_seg`` (1, H, W).

        Raises:
            InputError: a label beyond the palette.
        """
        token_logits, pixel_logits = seg_logits
        size = [SCALE * side for side in token_logits.shape[-2:]]
        pixel_logits = resize(pixel_logits, size=size, mode="bilinear", align_corners=self.align_corners)
        with torch.no_grad():
            tokens, labels = self.token_targets(self._stack_batch_gt(batch_data_samples).squeeze(1), pixel_logits)
        compared = {
            "tokens": (token_logits, tokens, self.d_vae.vocab_size),  # logits, targets, the target to ignore
            "pixels": (pixel_logits, labels, self.ignore_index),
        }
        losses: dict[str, Tensor] = {}
        modules: Any = self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]
        for loss, predicted in zip(modules, self.predicts, strict=True):
            logits, targets, ignored = compared[predicted]
            value = loss(logits, targets, ignore_index=ignored)
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
        for name, branch in (("acc_seg_aux", "pixels"), ("acc_seg_indice", "tokens")):  # published names
            logits, targets, ignored = compared[branch]
            losses[name] = accuracy(logits, targets, ignore_index=ignored)
        return losses

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Class scores (B, N, H, W) at the image's size, from token logits (B, vocabulary, h, w)."""
        colors = self.d_vae.decode(seg_logits.argmax(1))  # (B, 3, 8h, 8w)
        return self.maskige.scores(colors, _output_size(batch_img_metas[0]), self.color_std)

    def gives_probabilities(self, meta: dict[str, Any]) -> bool:
        """Whether ``predict`` returns class probabilities, as votes are; see ``segmentation.scores``."""
        return not self.color_std

    def probabilities(self, seg_logits: Tensor) -> Tensor:
        """Class probabilities from what ``predict`` returns."""
        return seg_logits if self.gives_probabilities({}) else seg_logits.softmax(1)


def _output_size(meta: dict[str, Any]) -> tuple[int, int]:
    """The size of the image that the head saw: the crop's in slide mode, else the padded image's."""
    crop = meta["img_shape"]
    size = crop if isinstance(crop, torch.Size) else meta.get("pad_shape", crop)
    return int(size[0]), int(size[1])


@MODELS.register_module()
class GenerativeSegHeadFFSingleFusion(GenerativeSegHeadFF):
    """Published name of ``GenerativeSegHeadFF(single_fusion=True)``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"single_fusion": True, **kwargs})


@MODELS.register_module()
class GenerativeSegHeadFTW(GenerativeSegHeadFF):
    """GSS-FT-W: FF's token branch and the dVAE, frozen, then X^-1, learned: from the maskige to the mask.

    Args:
        post_seg_channel: channels of the learned Swin stage.
        post_swin_num_head: its attention heads.
        post_swin_depth: its number of blocks.
        post_swin_window_size: its window, in pixels of the maskige.
        **kwargs: ``GenerativeSegHeadFF`` arguments.
    """

    pixel_branch = False
    predictable = ("pixels",)

    def __init__(
        self,
        *,
        post_seg_channel: int = 128,
        post_swin_num_head: int = 4,
        post_swin_depth: int = 2,
        post_swin_window_size: int = 7,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._frozen = [name for name, _ in self.named_children() if name != "loss_decode"]
        self.projection = self._conv(3, post_seg_channel)
        self.post_transformer_block = self._swin_stage(
            post_seg_channel, post_swin_num_head, post_swin_depth, post_swin_window_size
        )
        self.cls_segmap = ConvModule(post_seg_channel, self.num_classes, 1, act_cfg=None)
        self.post_swin_ln = nn.LayerNorm(post_seg_channel)
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def _frozen_modules(self) -> Iterator[nn.Module]:
        return (self.get_submodule(name) for name in self._frozen)

    def train(self, mode: bool = True) -> GenerativeSegHeadFTW:
        """Training mode for the learned part alone."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    @torch.no_grad()
    def decode_image(self, inputs: Sequence[Tensor]) -> Tensor:
        """The frozen part: features -> decoded maskige (B, 3, 8h, 8w), 0..255."""
        return self.d_vae.decode(super().forward(inputs).argmax(1))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Class logits (B, N, 8h, 8w) of the backbone's feature maps."""
        x = self.projection(self.decode_image(inputs) / 255)  # what published weights were trained on
        return self.cls_segmap(_swin(self.post_transformer_block, self.post_swin_ln, x))

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list[Any], train_cfg: Any) -> dict[str, Tensor]:
        """Cross-entropy of the logits at the ground truth's size."""
        return self.loss_by_feat(self.forward(inputs), batch_data_samples)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[Any]) -> dict[str, Tensor]:  # type: ignore[override]
        """``BaseDecodeHead.loss_by_feat`` after a check of the labels."""
        labels = self._stack_batch_gt(batch_data_samples)
        bad = (labels >= self.num_classes) & (labels != self.ignore_index)
        if bad.any():
            raise InputError(
                f"labels: {int(bad.sum())} pixels have ids above {self.num_classes - 1}, e.g. "
                f"{int(labels[bad].max())}; "
                f"map the masks' ids to 0..{self.num_classes - 1} and {self.ignore_index}"
            )
        return BaseDecodeHead.loss_by_feat(self, seg_logits, batch_data_samples)

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Class logits (B, N, H, W) at the image's size."""
        return BaseDecodeHead.predict_by_feat(self, seg_logits, batch_img_metas)

    def gives_probabilities(self, meta: dict[str, Any]) -> bool:
        """Never: ``predict`` returns logits."""
        return False

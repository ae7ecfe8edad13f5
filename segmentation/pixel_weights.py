"""Pixels that count less in a segmentor's loss: weight maps beside masks, on their way from files to the loss.

``ReadWeights`` reads a map after the mask, mmseg's resizing, cropping and flipping take it along, and
``PackWeightedInputs`` packs it. ``PixelWeightHook`` hands a batch's maps to the heads, whose ``sampler`` is mmseg's
place for weights of pixels; padding needs none, as its label is 255.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import TASK_UTILS
from mmseg.structures import BasePixelSampler
from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError
from common.images import ImageError, read_mask
from segmentation.config import heads
from segmentation.labels import loads_masks
from segmentation.trees import entries

FULL = 255  # a map's value for weight 1


@TRANSFORMS.register_module()
class ReadWeights(BaseTransform):
    """Reads the weight map that a ``MaskDataset`` names for a synthesized image; pixels of others count in full."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds ``gt_weight_map`` (H, W) uint8, 255 for weight 1.

        Raises:
            InputError: the file is no map of its mask's size.
        """
        shape = results["gt_seg_map"].shape
        path = results.get("weight_path")
        weights = np.full(shape, FULL, np.uint8) if path is None else read_mask(path)
        if path is not None and weights.shape != shape:
            raise ImageError.of(path, f"is {weights.shape[::-1]} px, its mask {shape[::-1]} (width, height)")
        results["gt_weight_map"] = weights
        results["seg_fields"].append("gt_weight_map")  # what moves with the image
        return results


@TRANSFORMS.register_module()
class PackWeightedInputs(PackSegInputs):
    """mmseg's ``PackSegInputs``, with the weight map as the sample's ``gt_weight`` (1, H, W)."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """See mmseg's."""
        packed = super().transform(results)
        weights = torch.from_numpy(np.ascontiguousarray(results["gt_weight_map"]))[None]
        packed["data_samples"].set_data({"gt_weight": PixelData(data=weights)})
        return packed


@TASK_UTILS.register_module()
class PixelWeights(BasePixelSampler):
    """Weights of a batch's pixels for the losses of a head, which asks for them once."""

    def __init__(self, **kwargs: Any) -> None:
        self.maps: list[Tensor] | None = None

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
        """Weights (N, H, W) in 0..1.

        Args:
            seg_logit: of the head (N, C, H, W).
            seg_label: labels (N, 1, H, W); maps are padded to their size on the right and below, as they are.
        """
        assert self.maps is not None, "PixelWeightHook gives them before each iteration"
        maps, self.maps = self.maps, None
        height, width = seg_label.shape[-2:]
        padded = [F.pad(one[0], (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in maps]
        return torch.stack(padded).to(seg_logit.device).float() / FULL


@HOOKS.register_module()
class PixelWeightHook(Hook):
    """Hands each batch's weight maps to the heads before the iteration, and makes sure that they were used."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Gives every head's ``PixelWeights`` the batch's maps."""
        for sampler in _samplers(runner):
            sampler.maps = [sample.gt_weight.data for sample in data_batch["data_samples"]]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Looks whether they were taken.

        Raises:
            InputError: a head's loss does not ask for weights.
        """
        samplers = list(_samplers(runner))
        if not samplers or any(sampler.maps is not None for sampler in samplers):
            raise InputError(f"{runner.cfg.filename}: ‹loss_weights›: a head's loss takes no weights of pixels")


def _samplers(runner: Runner) -> Iterator[PixelWeights]:
    """Those of all heads that have one."""
    found = (getattr(module, "sampler", None) for module in runner.model.modules())
    return (sampler for sampler in found if isinstance(sampler, PixelWeights))


def set_loss_weights(config: Config) -> None:
    """Has a config's training weigh the pixels of synthesized images as the maps in ``resampled_weight`` say.

    Raises:
        InputError: it has no synthesized images, a head with another ``sampler``, or another packing step.
    """
    loader = config.get("train_dataloader") or {}
    datasets = list(entries(loader, "MaskDataset"))
    if not any(dataset.get("synthesized") for dataset in datasets):
        raise InputError(f"{config.filename}: ‹loss_weights› needs ‹synthesized› DIR, with weight maps")
    for dataset in datasets:
        dataset.weighted = True
        steps = []
        for step in dataset.pipeline:
            packs = step.get("type") == "PackSegInputs"
            steps.append({**step, "type": "PackWeightedInputs"} if packs else step)
            if loads_masks(step):
                steps.append({"type": "ReadWeights"})
        if [step["type"] for step in steps].count("PackWeightedInputs") != 1:
            raise InputError(f"{config.filename}: ‹loss_weights›: its pipeline has no PackSegInputs")
        dataset.pipeline = steps
    for head in heads(config):
        if head.get("sampler"):
            raise InputError(f"{config.filename}: ‹loss_weights›: {head.type} has a sampler of its own")
        head.sampler = {"type": "PixelWeights"}
    config.custom_hooks = [*(config.get("custom_hooks") or []), {"type": "PixelWeightHook"}]

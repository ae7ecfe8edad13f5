"""What a segmentor makes of images: logits at the mask's size, through the config's own preparation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import imresize
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import Compose
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS, TRANSFORMS
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from common.errors import InputError
from segmentation.checkpoint import load_weights
from segmentation.classes import class_table
from segmentation.config import nodes


def load_segmentor(config: Config, checkpoint: str, device: str) -> BaseSegmentor:
    """A segmentor ready to predict, with ``num_classes`` and ``class_names`` (config's, else weights', else ids).

    Raises:
        InputError: the config's model is no segmentor, or the weights are another model's.
    """
    model_config = Config(config.model.to_dict())
    for part, key in ((model_config, "pretrained"), (model_config.get("backbone") or {}, "init_cfg")):
        part.pop(key, None)  # the checkpoint replaces them: nothing to download
    try:
        model = MODELS.build(model_config)
    except Exception as error:  # a model's constructor may raise anything
        raise InputError(f"{config.filename}: model {model_config.type} cannot be built: {error}") from error
    if not isinstance(model, BaseSegmentor):
        raise InputError(f"{config.filename}: model {model_config.type} is not a segmentor of mmseg")
    meta = load_weights(model, checkpoint)
    loaders = [config.get("train_dataloader"), config.get("test_dataloader")]
    tables = [class_table(dataset.classes)["classes"] for dataset in nodes(loaders, "MaskDataset")]
    named = [*tables, (meta.get("dataset_meta") or {}).get("classes") or (), map(str, range(model.num_classes))]
    model.class_names = next(names for names in map(list, named) if len(names) == model.num_classes)
    return model.to(device).eval()


@TRANSFORMS.register_module()
class MatchMask(BaseTransform):
    """Brings an image to its mask's size (``mask_size``), and so to the ground resolution of the real images."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img`` (H, W, 3) and the shapes that name its size."""
        height, width = results["mask_size"]
        if results["img"].shape[:2] != (height, width):
            results["img"] = imresize(results["img"], (width, height), interpolation="bicubic")
            results["img_shape"] = results["ori_shape"] = (height, width)
        return results


def test_steps(config: Config) -> list[dict[str, Any]]:
    """The config's preparation of test images, step by step, without the loading of masks."""
    loader = config.get("test_dataloader") or {}
    steps = config.get("test_pipeline") or loader.get("dataset", {}).get("pipeline")
    steps = steps or [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    return [step for step in steps if "Annotations" not in step["type"]]


def test_pipeline(config: Config) -> Compose:
    """The same as a function, from images at their masks' size."""
    load, *others = test_steps(config)
    return Compose([load, {"type": "MatchMask"}, *others])


class _Images(Dataset):
    def __init__(self, items: Sequence[tuple[Path, Path]], prepare: Compose, read_mask: Callable[[Path], np.ndarray]):
        self.items, self.prepare, self.read_mask = items, prepare, read_mask

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any], np.ndarray]:
        image, mask_file = self.items[index]
        mask = self.read_mask(mask_file)
        return index, self.prepare({"img_path": str(image), "mask_size": mask.shape}), mask


@torch.inference_mode()
def segment(
    model: BaseSegmentor,
    config: Config,
    items: Sequence[tuple[Path, Path]],
    read_mask: Callable[[Path], np.ndarray],
    batch_size: int = 8,
    num_workers: int = 4,
) -> Iterator[tuple[int, torch.Tensor, np.ndarray]]:
    """Runs the segmentor over images of any sizes; an image is first brought to its mask's size.

    Args:
        model: see ``load_segmentor``.
        config: its config, for the preparation of images and ``test_cfg`` (whole or sliding window).
        items: image and mask files.
        read_mask: reads a mask file, uint8 (H, W).
        batch_size: images of one size that follow one another share a batch.
        num_workers: processes that read images.

    Yields:
        Index of the item, logits (C, H, W) at the mask's size on the model's device, the mask (H, W).
    """
    loader = DataLoader(_Images(items, test_pipeline(config), read_mask), batch_size, num_workers=num_workers,
                        collate_fn=list)
    for batch in loader:
        for _, group in groupby(batch, key=lambda item: item[1]["inputs"].shape):
            indices, inputs, masks = zip(*group, strict=True)
            data = {key: [item[key] for item in inputs] for key in ("inputs", "data_samples")}
            for index, sample, mask in zip(indices, model.test_step(data), masks, strict=True):
                yield index, _two_or_more(sample.seg_logits.data), mask


def _two_or_more(logits: torch.Tensor) -> torch.Tensor:
    """(C, H, W); a binary head's single probability p becomes the logits 0 and log(p / (1 - p))."""
    if len(logits) > 1:
        return logits
    logit = torch.logit(logits, eps=1e-7)
    return torch.cat([torch.zeros_like(logit), logit])


def pixel_losses(logits: torch.Tensor, mask: np.ndarray) -> np.ndarray:
    """Cross-entropy of each pixel in nats, float32 (H, W); 0 where the mask is 255.

    Args:
        logits: (C, H, W).
        mask: class ids, uint8 (H, W).
    """
    target = torch.from_numpy(mask).to(logits.device, torch.long)
    return F.cross_entropy(logits[None].float(), target[None], ignore_index=255, reduction="none")[0].cpu().numpy()

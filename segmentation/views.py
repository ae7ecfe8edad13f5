"""Other ways to predict with the same weights: from several views of an image (TTA), or window by window."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import MODELS

from common.errors import InputError
from segmentation.labels import loads_masks, pipeline
from segmentation.scores import LEAST, gives_probabilities, probabilities_of
from segmentation.trees import with_pipeline

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of the built-in views, each as it is and mirrored; as published."""


@MODELS.register_module()
class MeanOfViews(SegTTAModel):
    """mmseg's ``SegTTAModel`` whose ``seg_logits`` are of all views, not of the last one.

    The mean of the views' probabilities decides. A binary head's probability is not put through the sigmoid again.
    """

    def merge_preds(self, data_samples_list: Sequence[Sequence[Any]]) -> list[Any]:
        """One sample an image, from its views' samples."""
        merged = []
        for views in data_samples_list:
            sample = views[0]
            mean = torch.stack([probabilities_of(self.module, view) for view in views]).mean(0)
            several = len(mean) > 1
            # as numbers: mmseg brings masks to the type of what was found, and 255 would be true
            found = mean.argmax(0, keepdim=True) if several else (mean > self.module.decode_head.threshold).long()
            least = LEAST if gives_probabilities(self.module, sample.metainfo) else 1e-12
            sample.set_data(
                {
                    "seg_logits": PixelData(data=mean.clamp_min(least).log() if several else mean),
                    "pred_sem_seg": PixelData(data=found),
                }
            )
            merged.append(sample)
        return merged


def view_steps(config: Config) -> list[dict[str, Any]]:
    """Preparation of an image for TTA: the config's ``tta_pipeline``, else the test's own steps at 6 scales, mirrored.

    Raises:
        InputError: the config's has no views.
    """
    if given := config.get("tta_pipeline"):
        if sum(str(step.get("type")).endswith("TestTimeAug") for step in given) != 1 or len(given) < 2:
            raise InputError(f"{config.filename}: tta_pipeline: needs a step that loads images, and one TestTimeAug")
        return copy.deepcopy(list(given))
    load, *steps = copy.deepcopy(pipeline(config))
    masks = [step for step in steps if loads_masks(step)]
    pack = [step for step in steps if str(step.get("type")).startswith("Pack")]
    return [
        load,
        *(step for step in steps if step not in masks and step not in pack),
        {
            "type": "TestTimeAug",
            "transforms": [
                [{"type": "Resize", "scale_factor": scale, "keep_ratio": True} for scale in SCALES],
                [{"type": "RandomFlip", "prob": prob, "direction": "horizontal"} for prob in (0.0, 1.0)],
                *([one] for one in masks),
                pack,
            ],
        },
    ]


def without_masks(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps of ``view_steps`` for images that have no mask."""
    kept = []
    for step in steps:
        if "transforms" in step:
            lists = [[one for one in part if not loads_masks(one)] for part in step["transforms"]]
            step = {**step, "transforms": [part for part in lists if part]}
        if not loads_masks(step):
            kept.append(step)
    return kept


def test_from_views(config: Config) -> None:
    """Has a config's own test (the Runner's) predict from several views."""
    steps = view_steps(config)
    for dataset in with_pipeline(config.get("test_dataloader") or {}):
        dataset["pipeline"] = steps
    config.model = {"type": "MeanOfViews", "module": config.model}


def set_slide(config: Config, window: int, stride: int | None = None) -> None:
    """Has a segmentor look at windows of ``window`` x ``window`` px, every ``stride`` px (default: 2/3 of a window).

    Raises:
        InputError: windows would leave gaps.
    """
    stride = stride or max(1, window * 2 // 3)
    if stride > window:
        raise InputError(
            f"‹slide› {window} {stride}: the stride is larger than the window and leaves gaps; at most {window}"
        )
    config.model.test_cfg = {
        **(config.model.get("test_cfg") or {}),
        "mode": "slide",
        "crop_size": (window, window),
        "stride": (stride, stride),
    }

"""Validation while training: on which images, how often, and which weights are kept for it."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config

from common.errors import InputError
from common.segmentor_options import METRICS
from segmentation.trees import entries


def set_validation(
    config: Config, split: str | None = None, interval: int | None = None, best: str | None = None
) -> None:
    """Validates while training as the command line says; None leaves a value as the config has it.

    Args:
        config: changed in place.
        split: ``img_<split>`` and ``label_<split>``, prepared as the test images are; ``none`` for no validation.
        interval: iterations (epochs, where the config counts them) between two validations.
        best: the score of ``METRICS`` whose best weights are kept as ``best_<score>_iter_<N>.pth``; with a split and
            without this, mIoU.

    Raises:
        InputError: the config's test has no MaskDataset, or there is no validation that the options could change.
    """
    if split == "none":
        for key in ("val_dataloader", "val_cfg", "val_evaluator"):
            config.pop(key, None)
        for hook in entries(config.get("default_hooks"), "CheckpointHook"):
            hook.pop("save_best", None)
    elif split:
        _on_split(config, split)
    if not config.get("val_dataloader"):
        if interval or best:
            raise InputError(
                f"{'‹best›' if best else '‹val_interval›'}: this training validates on nothing; name a "
                "split with ‹val_split›"
            )
        return
    hooks = list(entries(config.get("default_hooks"), "CheckpointHook"))
    if interval:
        config.train_cfg.val_interval = interval
    elif split and "val_interval" not in config.train_cfg:
        by_iter = [hook.get("interval") for hook in hooks if not hook.get("by_epoch", True)]
        config.train_cfg.val_interval = by_iter[0] if by_iter and config.train_cfg.get("max_iters") else 1
    if best or split:
        if not hooks:
            raise InputError(f"{config.filename}: has no CheckpointHook, which keeps the best weights")
        for hook in hooks:
            hook.save_best = METRICS[best] if best else hook.get("save_best") or "mIoU"


def _on_split(config: Config, split: str) -> None:
    loader = copy.deepcopy(config.get("test_dataloader"))
    if not any(entries(loader or {}, "MaskDataset")):
        raise InputError(
            f"{config.filename}: ‹val_split›: the config's test has no MaskDataset; write val_dataloader, "
            "val_cfg and val_evaluator into the config"
        )
    for dataset in entries(loader, "MaskDataset"):
        dataset.data_prefix = {"img_path": f"img_{split}", "seg_map_path": f"label_{split}"}
        dataset.ann_file = ""
    config.val_dataloader = loader
    config.val_evaluator = copy.deepcopy(config.get("test_evaluator"))
    config.val_cfg = {"type": "ValLoop", "fp16": bool((config.get("test_cfg") or {}).get("fp16", False))}


def chosen_on_test(config: Config) -> str:
    """What to say of a training that chooses its weights on the images of its own test; empty where it does not."""
    read = [_sources((config.get(f"{part}_dataloader") or {}).get("dataset")) for part in ("val", "test")]
    best = [hook.save_best for hook in entries(config.get("default_hooks"), "CheckpointHook") if hook.get("save_best")]
    if not best or not read[0] or read[0] != read[1]:
        return ""
    return (
        f"{config.filename}: keeps the weights with the best {best[0]} on the test images themselves, so that "
        "their test score is no measure of new images. Another split: ‹val_split› NAME; none: ‹val_split› none"
    )


def _sources(tree: Any) -> list[Any]:
    """What a loader's data sets read, without how they prepare it."""
    if isinstance(tree, (list, tuple)):
        return [source for part in tree for source in _sources(part)]
    if not isinstance(tree, dict):
        return []
    inner = [source for key in ("dataset", "datasets") for source in _sources(tree.get(key))]
    wanted = ("data_root", "data_prefix", "ann_file", "indices")
    return inner or [[tree.get(key) or None for key in wanted]]

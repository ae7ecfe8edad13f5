"""What options change in a config: the data, the classes, the length of the training, the first weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from common.command import note
from common.errors import InputError
from common.ranks import is_first
from segmentation import checkpoint
from segmentation.classes import class_table
from segmentation.config import PARTS, heads
from segmentation.trees import entries


def set_data(
    config: Config,
    data_root: str | None = None,
    classes: str | None = None,
    synthesized: str | None = None,
    repeat: int | None = None,
    test_split: str | None = None,
) -> None:
    """Points a config's ``MaskDataset`` entries at other data; None leaves a value as the config has it.

    Args:
        config: changed in place.
        data_root: the data set's folder, for training and testing.
        classes: class table, by name or path; sets the heads' number of classes as well.
        synthesized: resample.sh's output folder, joined to the training data.
        repeat: how often real training pairs count.
        test_split: tests on ``img_<split>`` and ``label_<split>``.

    Raises:
        InputError: the config's data sets are of another class, which does not take these values.
    """
    loaders = [config.get(f"{part}_dataloader") or {} for part in PARTS]
    for given, loader in ((data_root or synthesized or repeat is not None, loaders[0]), (test_split, loaders[2])):
        if given and not any(entries(loader, "MaskDataset")):
            raise InputError(
                f"{config.filename}: has no MaskDataset: ‹data_root›, ‹synthesized›, ‹repeat› and "
                "‹split› do not apply; use ‹cfg_options›"
            )
    if data_root or classes or test_split:
        for dataset in entries(loaders, "MaskDataset"):
            dataset.update({key: value for key, value in (("data_root", data_root), ("classes", classes)) if value})
        if classes:
            for head in heads(config):
                head.num_classes = len(class_table(classes)["classes"])
    for dataset in entries(loaders[0], "MaskDataset"):
        dataset.update(
            {key: value for key, value in (("synthesized", synthesized), ("repeat", repeat)) if value is not None}
        )
    if test_split:
        for dataset in entries(loaders[2], "MaskDataset"):
            dataset.data_prefix = {"img_path": f"img_{test_split}", "seg_map_path": f"label_{test_split}"}
            dataset.ann_file = ""


def check_classes(config: Config, outputs: int | None = None) -> None:
    """Refuses a config whose heads and class table disagree, before any data is read.

    Args:
        config: to check; its heads get ``outputs``.
        outputs: the heads' number of outputs, of which some may belong to no class (published FUSU: 18 for 17 names).

    Raises:
        InputError: a head's ``num_classes`` is not the table's, or ``outputs`` are too few.
    """
    for head in heads(config) if outputs else ():
        head.num_classes = outputs
    loaders = [config.get(f"{part}_dataloader") or {} for part in PARTS]
    for dataset in entries(loaders, "MaskDataset"):
        count = len(class_table(dataset.classes)["classes"])
        if outputs and outputs < count:
            raise InputError(
                f"‹head_classes› {outputs}: class table {dataset.classes} has {count} classes; at least one output each"
            )
        for head in heads(config) if not outputs else ():
            if head.get("num_classes") != count:
                raise InputError(
                    f"{config.filename}: {head.get('type')}: num_classes is {head.get('num_classes')}, but class table "
                    f"{dataset.classes} has {count} classes; correct one (‹classes› sets both)"
                )


def set_max_iters(config: Config, max_iters: int) -> None:
    """Trains for another number of iterations; schedules that ended with the training still do.

    A short training saves its state at least 5 times, so that a stopped one loses little, and validates as often.
    Schedules whose fixed parts, such as a warm-up, are longer than the training are scaled with it, which is said.

    Raises:
        InputError: the config trains by epochs.
    """
    old = (config.get("train_cfg") or {}).get("max_iters")
    if old is None:
        raise InputError(
            f"{config.filename}: ‹max_iters›: this config trains by epochs; set them with ‹cfg_options› "
            "train_cfg.max_epochs=N"
        )
    config.train_cfg.max_iters = max_iters
    often = max(1, max_iters // 5)
    if "val_interval" in config.train_cfg:
        config.train_cfg.val_interval = min(config.train_cfg.val_interval, often)
    for hook in entries(config.get("default_hooks"), "CheckpointHook"):
        hook.interval = max(1, min(hook.get("interval", max_iters), often))
    given = config.get("param_scheduler") or []
    schedulers: list[Any] = [given] if isinstance(given, dict) else list(given)
    counted = [scheduler for scheduler in schedulers if not scheduler.get("by_epoch")]
    beyond = [
        scheduler
        for scheduler in counted
        if scheduler.get("begin", 0) >= max_iters
        or (scheduler.get("end") not in (None, old) and scheduler["end"] > max_iters)
    ]
    if not beyond or len(counted) < len(schedulers):
        for scheduler in counted:
            if scheduler.get("end") == old:
                scheduler["end"] = max_iters
        return
    config.param_scheduler = _scaled(schedulers, old, max_iters)
    if is_first():
        note(
            f"‹max_iters› {max_iters}: shorter than a part of the schedule, which is scaled: {_spans(schedulers)} "
            f"becomes {_spans(config.param_scheduler) or 'a constant rate'}"
        )


def _scaled(schedulers: list[Any], old: int, new: int) -> list[Any]:
    """Schedules for ``new`` iterations in place of ``old``; parts of less than two iterations fall away."""
    scaled = []
    for scheduler in schedulers:
        begin, end = (
            min(new, round(iteration * new / old))
            for iteration in (scheduler.get("begin", 0), scheduler.get("end") or old)
        )
        if end - begin >= 2:
            scaled.append({**scheduler, "begin": begin, "end": end})
    return scaled


def _spans(schedulers: list[Any]) -> str:
    return ", ".join(
        f"{scheduler['type']} {scheduler.get('begin', 0)}..{scheduler.get('end', 'end')}" for scheduler in schedulers
    )


def set_crop_size(config: Config, size: int) -> None:
    """Trains on crops of ``size`` x ``size`` pixels.

    Raises:
        InputError: the config crops nothing.
    """
    crops = list(entries(config.get("train_dataloader"), "RandomCrop"))
    if not crops:
        raise InputError(f"{config.filename}: ‹crop_size›: this config has no RandomCrop; use ‹cfg_options›")
    for crop in crops:
        crop.crop_size = (size, size)
    preprocessor = config.model.get("data_preprocessor") or config.get("data_preprocessor")
    if isinstance(preprocessor, dict):
        preprocessor["size"] = (size, size)


def set_pretrained(config: Config, weights: str | None) -> None:
    """Starts the backbone from a file or an address of weights, or from scratch (None).

    Raises:
        InputError: no such file.
    """
    checkpoint.allow_fetch(weights)
    if weights and "://" not in weights and not Path(weights).is_file():
        raise InputError(f"‹pretrained› {weights}: no such file; name a file, an address, or none")
    if weights:
        try:
            checkpoint.load_from_file(weights)  # read here so that a bad file is refused before the work
        except InputError as error:
            raise InputError(f"‹pretrained› {error}") from error
    if "pretrained" in config.model:
        config.model.pretrained = None
    backbone = config.model.get("backbone")
    if isinstance(backbone, dict):
        backbone["init_cfg"] = {"type": "Pretrained", "checkpoint": weights} if weights else None
    elif weights:
        raise InputError(f"{config.filename}: ‹pretrained›: model {config.model.type} has no backbone; use ‹load_from›")


def set_seed(config: Config, seed: int | None) -> None:
    """The seed that is given; without one the config's, without that 0."""
    randomness = config.get("randomness") or {}
    config.randomness = {**randomness, "seed": seed if seed is not None else randomness.get("seed") or 0}


def save_between_updates(config: Config) -> None:
    """Saves a training that sums gradients over several iterations only where an update is done: sums are not saved."""
    count = (config.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    if isinstance(count, int) and count > 1:
        for hook in entries(config.get("default_hooks"), "CheckpointHook"):
            if not hook.get("by_epoch", True) and isinstance(interval := hook.get("interval"), int) and interval > 0:
                hook.interval = -(-interval // count) * count

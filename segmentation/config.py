"""mmseg configs: loaded, pointed at a data set, checked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from common.errors import InputError
from segmentation import checkpoint
from segmentation.classes import class_table
from segmentation.loading import use_own_readers

HEADS = ("decode_head", "auxiliary_head")


class ConfigOptions(DictAction):
    """mmengine's ``--cfg-options``; refuses what is no setting. ``cfg_words`` has them as they were written."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Adds the settings to those of the config."""
        if wrong := [text for text in values if "=" not in text.lstrip("=")]:
            parser.error(f"--cfg-options {wrong[0]}: settings are written key=value")
        namespace.cfg_words = [*getattr(namespace, "cfg_words", []), *values]
        super().__call__(parser, namespace, values)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options key=value ...``, as mmseg's own commands have it."""
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions, metavar="KEY=VALUE",
                        help="config values to set; nested keys with dots")


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """An mmseg config.

    Args:
        path: the config file.
        options: values to set, ``{"train_cfg.max_iters": 10}``.

    Raises:
        InputError: no such file, not an mmseg config, or an import of it that is not installed.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such config")
    try:
        config = Config.fromfile(path)
        if options:
            config.merge_from_dict(options)
            checkpoint.allow_fetch(options)
    except Exception as error:  # a config is code: anything may go wrong in it
        raise InputError(f"{path}: cannot be read as an mmseg config: {error}") from error
    if not isinstance(config.get("model"), dict) or "type" not in config.model:
        raise InputError(f"{path}: not an mmseg config: no model with a field 'type'")
    for part in ("train", "val", "test"):
        loader = config.get(f"{part}_dataloader") or {}
        if loader.get("num_workers") == 0:  # as --cfg-options may say; then torch refuses workers that stay
            loader["persistent_workers"] = False
    if use_own_readers(config._cfg_dict):
        imports = config.get("custom_imports") or {}
        if "segmentation" not in (imports.get("imports") or []):  # for whoever reads the config that a run saves
            config.custom_imports = {**imports, "imports": [*(imports.get("imports") or []), "segmentation"]}
    init_default_scope(config.get("default_scope", "mmseg"))
    return config


def nodes(tree: Any, kind: str) -> Iterator[Any]:
    """All dictionaries in a part of a config whose ``type`` is ``kind``."""
    if isinstance(tree, dict):
        if tree.get("type") == kind:
            yield tree
        for value in tree.values():
            yield from nodes(value, kind)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from nodes(value, kind)


def heads(config: Config) -> Iterator[Any]:
    """The decode heads and auxiliary heads of a config's model."""
    for name in HEADS:
        head = config.model.get(name)
        yield from head if isinstance(head, (list, tuple)) else [head] if head else []


def set_data(
    config: Config,
    data_root: str | None = None,
    classes: str | None = None,
    synthesised: str | None = None,
    repeat: int | None = None,
    test_split: str | None = None,
) -> None:
    """Points a config's ``MaskDataset`` entries at other data; None leaves a value as the config has it.

    Args:
        config: changed in place.
        data_root: the data set's folder, for training and testing.
        classes: class table, by name or path; sets the heads' number of classes as well.
        synthesised: resample.sh's output folder, joined to the training data.
        repeat: how often real training pairs count.
        test_split: tests on ``img_<split>`` and ``label_<split>``.

    Raises:
        InputError: the config's data sets are of another class, which does not take these values.
    """
    loaders = [config.get(f"{part}_dataloader") or {} for part in ("train", "val", "test")]
    for given, loader in ((data_root or synthesised or repeat is not None, loaders[0]), (test_split, loaders[2])):
        if given and not any(nodes(loader, "MaskDataset")):
            raise InputError(f"{config.filename}: has no MaskDataset: --data-root, --synthesised, --repeat and "
                                    "--split do not apply; use --cfg-options")
    if data_root or classes or test_split:
        for dataset in nodes(loaders, "MaskDataset"):
            dataset.update({key: value for key, value in (("data_root", data_root), ("classes", classes)) if value})
        if classes:
            for head in heads(config):
                head.num_classes = len(class_table(classes)["classes"])
    for dataset in nodes(loaders[0], "MaskDataset"):
        dataset.update({key: value for key, value in (("synthesised", synthesised), ("repeat", repeat))
                        if value is not None})
    if test_split:
        for dataset in nodes(loaders[2], "MaskDataset"):
            dataset.data_prefix = {"img_path": f"img_{test_split}", "seg_map_path": f"label_{test_split}"}
            dataset.ann_file = ""


def check_classes(config: Config) -> None:
    """Refuses a config whose heads and class table disagree, before any data is read.

    Raises:
        InputError: a head's ``num_classes`` is not the table's.
    """
    loaders = [config.get(f"{part}_dataloader") or {} for part in ("train", "val", "test")]
    for dataset in nodes(loaders, "MaskDataset"):
        count = len(class_table(dataset.classes)["classes"])
        for head in heads(config):
            if head.get("num_classes") != count:
                raise InputError(
                    f"{config.filename}: {head.type}: num_classes is {head.get('num_classes')}, but class table "
                    f"{dataset.classes} has {count} classes; correct one (--classes sets both)")


def set_max_iters(config: Config, max_iters: int) -> None:
    """Trains for another number of iterations; schedules that ended with the training still do.

    A short training saves its state at least 5 times, so that a stopped one loses little.

    Raises:
        InputError: a schedule's fixed part is longer than the training.
    """
    old = config.train_cfg.max_iters
    config.train_cfg.max_iters = max_iters
    for hook in nodes(config.get("default_hooks"), "CheckpointHook"):
        hook.interval = max(1, min(hook.get("interval", max_iters), max_iters // 5))
    for scheduler in config.get("param_scheduler") or []:
        if scheduler.get("end") == old:
            scheduler.end = max_iters
        elif scheduler.get("end", 0) > max_iters or scheduler.get("begin", 0) >= max_iters:
            raise InputError(f"param_scheduler: {scheduler.type} from {scheduler.get('begin', 0)} to "
                                    f"{scheduler.get('end')} does not fit into {max_iters} iterations")


def set_crop_size(config: Config, size: int) -> None:
    """Trains on crops of ``size`` x ``size`` pixels."""
    for crop in nodes(config.train_dataloader, "RandomCrop"):
        crop.crop_size = (size, size)
    config.model.data_preprocessor.size = (size, size)


def set_pretrained(config: Config, weights: str | None) -> None:
    """Starts the backbone from a file or an address of weights, or from scratch (None).

    Raises:
        InputError: no such file.
    """
    checkpoint.allow_fetch(weights)
    if weights and "://" not in weights and not Path(weights).is_file():
        raise InputError(f"--pretrained {weights}: no such file; name a file, an address, or none")
    config.model.pretrained = None
    config.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": weights} if weights else None

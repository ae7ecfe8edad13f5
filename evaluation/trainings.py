"""What a comparison trains and tests: configs of all arms, fair ones, and what they are made from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from common.bands import Bands, see
from common.errors import InputError
from common.files import digest
from common.pairing import IMAGE_SUFFIXES, list_files
from common.segmentor_options import TrainOptions
from common.stamps import Contents
from evaluation.arms import Arm, arms_of, curve_recipes
from evaluation.compare import CompareOptions
from evaluation.runs import Comparison, Stamp, test_options
from segmentation.bands import bands_of_config
from segmentation.data_check import LOADERS, check_files
from segmentation.prediction import check_images
from segmentation.provenance import TEST, TRAIN, data_files, hash_of_settings, named_files
from segmentation.testing import test_config
from segmentation.training import training_config
from segmentation.trees import entries

__all__ = ["arms_of", "check_data", "comparison_of", "curve_recipes", "training_configs", "training_options"]

Arms = dict[str, Arm]  # by kind
Configs = dict[str, Any]  # of mmengine, by kind


def training_options(options: CompareOptions) -> dict[str, TrainOptions]:
    """By kind: the same but for the data, and for the config, if the joint training has its own."""
    return {kind: arm.training for kind, arm in arms_of(options).items()}


def training_configs(options: CompareOptions, arms: Arms) -> Configs:
    """All arms' configs; those of what comes before a training are kinds with ``_before``.

    Raises:
        InputError: the joint training differs from the baseline in more than data, which would be unfair, or not even
            in data.
    """
    configs = {kind: training_config(arm.training) for kind, arm in arms.items()}
    configs |= {_before(kind): training_config(arm.pretraining) for kind, arm in arms.items() if arm.pretraining}
    if "joint" in configs:
        _check_fair(options, configs["baseline"], configs["joint"])
    if any(entry.get("synthesized") for entry in _mask_data(configs["baseline"])):
        raise InputError(f"{options.config}: the baseline has synthesized images; name a config without them")
    folders = {entry.synthesized for cfg in configs.values() for entry in _mask_data(cfg) if entry.get("synthesized")}
    for folder in sorted(folders):
        list_files(Path(folder) / "resampled_img", IMAGE_SUFFIXES, "‹synthesized›")
    return configs


def _before(kind: str) -> str:
    return f"{kind}_before"


def _mask_data(config: Any) -> list[Any]:
    return list(entries(config.train_dataloader, "MaskDataset"))


def _check_fair(options: CompareOptions, baseline: Any, joint: Any) -> None:
    """Refuses a joint config that differs from the baseline's by more than its data; other arms take the baseline's."""
    for what, value in (
        ("train_cfg.max_iters", lambda cfg: cfg.train_cfg.max_iters),
        ("train_dataloader.batch_size", lambda cfg: cfg.train_dataloader.batch_size),
        ("model", lambda cfg: cfg.model),
        ("optim_wrapper", lambda cfg: cfg.optim_wrapper),
        ("param_scheduler", lambda cfg: cfg.get("param_scheduler")),
        ("custom_hooks", lambda cfg: cfg.get("custom_hooks")),
    ):
        if value(baseline) != value(joint):
            raise InputError(f"{options.config} and {options.joint_config}: {what} differs; both trainings must match")
    if baseline.train_dataloader == joint.train_dataloader:
        raise InputError(f"{options.joint_config}: trains on the same data as the baseline; add ‹synthesized› DIR")


def comparison_of(options: CompareOptions, arms: Arms, configs: Configs) -> Comparison:
    """All trainings and tests, and what they are made from."""
    contents = Contents(options.out_dir / ".contents.json")
    files = {kind: data_files(cfg.train_dataloader) for kind, cfg in configs.items()}
    real = set(files["baseline"])
    references = _references(options)
    made_from: dict[str, Stamp] = {}
    for kind, arm in arms.items():
        cfg, read = configs[kind], [*files[kind], *files.get(_before(kind), [])]
        stamp = {
            "max_iters": cfg.train_cfg.max_iters,
            "batch_size": cfg.train_dataloader.batch_size,
            "settings": hash_of_settings(cfg, TRAIN),
            "weights or other files of the config": contents.all(named_files(cfg, TRAIN)),
            "real images and masks": contents.all(path for path in read if path in real),
            "synthesized images and masks": contents.all(path for path in read if path not in real),
        }
        if arm.pretraining:
            stamp["settings of what comes before"] = hash_of_settings(configs[_before(kind)], TRAIN)
        if arm.teacher or arm.training.references:
            stamp["references"] = contents.all(references)
        if arm.teacher:  # the real arm's training, and how sure it has to be
            stamp["teacher"] = digest(made_from["baseline"], arm.teacher.sure)
        made_from[kind] = stamp
    test_sets = {}
    for split, cfg in _test_configs(options, arms).items():
        test_sets[split] = digest(
            hash_of_settings(cfg, TEST),
            contents.all(named_files(cfg, TEST)),
            contents.all(data_files(cfg.test_dataloader)),
        )
    contents.save()
    return Comparison(options.out_dir, options.seeds, arms, made_from, test_sets)


def _references(options: CompareOptions) -> list[Path]:
    if options.references is None:
        return []
    return sorted(list_files(options.references, IMAGE_SUFFIXES, "‹references›").values())


def check_data(options: CompareOptions, arms: Arms, configs: Configs) -> None:
    """Opens all files once, so that not every training does."""
    seen: set[Path] = set()
    for cfg in configs.values():
        files = {*data_files(cfg.train_dataloader)}
        if not files <= seen:
            seen |= files
            check_files(cfg, LOADERS["train"], options.several_maps)
    check_images(_references(options), partial(see, bands=bands_of_images(configs)))
    for cfg in _test_configs(options, arms).values():
        check_files(cfg, LOADERS["test"], options.several_maps)


def class_table_of(configs: Configs) -> str | None:
    """The class table that the baseline's training set names, if it does."""
    return next((entry.classes for entry in _mask_data(configs["baseline"])), None)


def bands_of_images(configs: Configs) -> Bands | None:
    """What the baseline's config states of the images' bands; None for three of 8 bits."""
    return bands_of_config(configs["baseline"])


def _test_configs(options: CompareOptions, arms: Arms) -> Configs:
    """Of the baseline's test on each test set."""
    return {split: test_config(test_options(arms["baseline"].training, split)) for split in options.splits}

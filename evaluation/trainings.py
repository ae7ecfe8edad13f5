"""What a comparison trains and tests: options and configs of both kinds, fair ones, and what they are made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import digest
from common.pairing import IMAGE_SUFFIXES, list_files
from common.stamps import Contents
from evaluation.compare import CompareOptions
from evaluation.runs import KINDS, Comparison, test_options
from segmentation.data_check import LOADERS, check_files
from segmentation.options import TrainOptions
from segmentation.provenance import TEST, TRAIN, data_files, hash_of_settings, named_files
from segmentation.testing import test_config
from segmentation.training import training_config
from segmentation.trees import entries

Configs = dict[str, Any]  # of mmengine, by kind


def training_options(options: CompareOptions) -> dict[str, TrainOptions]:
    """By kind: the same but for the data, and for the config, if the joint training has its own."""
    baseline = TrainOptions(
        config=options.config,
        cfg_options=options.cfg_options,
        trust_config=options.trust_config,
        data_root=options.data_root,
        classes=options.classes,
        max_iters=options.max_iters,
        crop_size=options.crop_size,
        pretrained=options.pretrained,
    )
    joint = replace(baseline, config=options.joint_config or options.config)
    if options.synthesized:
        joint = replace(joint, synthesized=options.synthesized, repeat=options.repeat)
    return {"baseline": baseline, "joint": joint}


def training_configs(options: CompareOptions) -> Configs:
    """Both kinds' configs.

    Raises:
        InputError: they differ in more than data, which would be unfair, or not even in data.
    """
    configs = {kind: training_config(training) for kind, training in training_options(options).items()}
    for what, value in (
        ("train_cfg.max_iters", lambda cfg: cfg.train_cfg.max_iters),
        ("train_dataloader.batch_size", lambda cfg: cfg.train_dataloader.batch_size),
        ("model", lambda cfg: cfg.model),
        ("optim_wrapper", lambda cfg: cfg.optim_wrapper),
        ("param_scheduler", lambda cfg: cfg.get("param_scheduler")),
        ("custom_hooks", lambda cfg: cfg.get("custom_hooks")),
    ):
        before, after = (value(configs[kind]) for kind in KINDS)
        if before != after:
            raise InputError(f"{options.config} and {options.joint_config}: {what} differs; both trainings must match")
    real, joint = (list(entries(configs[kind].train_dataloader, "MaskDataset")) for kind in KINDS)
    for folder in sorted({entry.synthesized for entry in joint if entry.get("synthesized")}):
        list_files(Path(folder) / "resampled_img", IMAGE_SUFFIXES, "‹synthesized›")
    if any(entry.get("synthesized") for entry in real):
        raise InputError(f"{options.config}: the baseline has synthesized images; name a config without them")
    if configs["baseline"].train_dataloader == configs["joint"].train_dataloader:
        raise InputError(f"{options.joint_config}: trains on the same data as the baseline; add ‹synthesized› DIR")
    return configs


def comparison_of(options: CompareOptions, configs: Configs) -> Comparison:
    """All trainings and tests, and what they are made from."""
    contents = Contents(options.out_dir / ".contents.json")
    files = {kind: data_files(configs[kind].train_dataloader) for kind in KINDS}
    real = set(files["baseline"])
    made_from = {}
    for kind, cfg in configs.items():
        made_from[kind] = {
            "max_iters": cfg.train_cfg.max_iters,
            "batch_size": cfg.train_dataloader.batch_size,
            "settings": hash_of_settings(cfg, TRAIN),
            "weights or other files of the config": contents.all(named_files(cfg, TRAIN)),
            "real images and masks": contents.all(path for path in files[kind] if path in real),
            "synthesized images and masks": contents.all(path for path in files[kind] if path not in real),
        }
    test_sets = {}
    for split, cfg in _test_configs(options).items():
        test_sets[split] = digest(
            hash_of_settings(cfg, TEST),
            contents.all(named_files(cfg, TEST)),
            contents.all(data_files(cfg.test_dataloader)),
        )
    contents.save()
    return Comparison(options.out_dir, options.seeds, training_options(options), made_from, test_sets)


def check_data(options: CompareOptions, configs: Configs) -> None:
    """Opens all files once, so that not every training does."""
    for kind in KINDS:
        check_files(configs[kind], LOADERS["train"])
    for cfg in _test_configs(options).values():
        check_files(cfg, LOADERS["test"])


def class_table_of(configs: Configs) -> str | None:
    """The class table that the baseline's training set names, if it does."""
    return next((entry.classes for entry in entries(configs["baseline"].train_dataloader, "MaskDataset")), None)


def _test_configs(options: CompareOptions) -> Configs:
    """Of the baseline's test on each test set."""
    baseline = training_options(options)["baseline"]
    return {split: test_config(test_options(baseline, split)) for split in options.splits}

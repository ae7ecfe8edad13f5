"""A training's or test's config: the file's, with everything that its options set."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config

from common.bands import read_bands_file
from common.segmentor_options import SegmentorOptions, TestOptions
from segmentation import checkpoint
from segmentation.bands import set_bands
from segmentation.config import load_config
from segmentation.config_changes import check_classes, set_crop_size, set_data, set_max_iters, set_pretrained, set_seed
from segmentation.logs import set_logger
from segmentation.precision import set_precision
from segmentation.trees import entries


def resolve(options: SegmentorOptions) -> Config:
    """The config with what trainings and tests have in common.

    Raises:
        InputError: the config cannot be read, or does not have what an option sets; before anything is built of it.
    """
    testing = isinstance(options, TestOptions)
    config = load_config(options.config, options.cfg_options, options.trust_config)
    set_data(
        config,
        _text(options.data_root),
        _text(options.classes),
        _text(options.synthesized),
        options.repeat,
        options.split if isinstance(options, TestOptions) else None,
    )
    check_classes(config, options.head_classes)
    if options.bands is not None:
        set_bands(config, read_bands_file(options.bands))
    if options.crop_size:
        set_crop_size(config, options.crop_size)
    if options.max_iters:
        set_max_iters(config, options.max_iters)
    set_precision(config, options.precision)
    if logger := options.logger or ("tensorboard" if options.tensorboard else None):
        set_logger(config, logger)
    pretrained, load_from = _text(options.pretrained), _text(options.load_from)
    if pretrained or testing:
        set_pretrained(config, None if testing or pretrained == "none" else pretrained)
    checkpoint.allow_fetch(load_from)
    checkpoint.check_sources(config, training=not testing)
    config.work_dir = str(options.work_dir or config.get("work_dir") or f"work_dirs/{Path(config.filename).stem}")
    config.load_from = load_from
    # A config's own launcher says how its author started it, not how this process was started.
    config.launcher = options.launcher or ("pytorch" if os.environ.get("TORCHELASTIC_RUN_ID") else "none")
    set_seed(config, options.seed)
    for evaluator in entries([config.get("val_evaluator"), config.get("test_evaluator")], "IoUMetric"):
        evaluator.type = "ClassIoUMetric"  # the same scores, by class and not rounded
    return config


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)

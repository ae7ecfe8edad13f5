"""Everything of a config built, and one step made with it, before the work: what is wrong is said in one line.

A config names classes of several packages, which refuse their arguments with whatever they like, some not before the
first batch. So the parts are built in a folder that goes away, and one or two items pass through them.
"""

from __future__ import annotations

import copy
import gc
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from common.errors import InputError
from segmentation.config import errors_in_one_line
from segmentation.data_check import check_sizes
from segmentation.runner import SegmentorRunner, TestRunner, globals_restored
from segmentation.trees import entries

_SAMPLES = 2  # batch normalization after global pooling has one value an image and cannot work with one image


def rehearse(cfg: Config, task: str) -> None:
    """Builds what a training or test will, loads its weights, and makes one step of it.

    Args:
        cfg: resolved; not changed.
        task: ``train`` or ``test``.

    Raises:
        InputError: a part that cannot be built or used; the message names the config and the part.
    """
    _check_memory(cfg, ("train_dataloader", "val_dataloader") if task == "train" else ("test_dataloader",))
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with tempfile.TemporaryDirectory(prefix="segmentor.") as folder, globals_restored():
        with errors_in_one_line(cfg, "model, hooks and visualizer"):
            runner = (TestRunner if task == "test" else SegmentorRunner).from_cfg(_for_rehearsal(cfg, folder))
        # Checkpoint hooks may write and remove files outside of this folder; config_schema checks their settings.
        runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, CheckpointHook)]
        if task == "train":
            _first_training_step(cfg, runner)
        else:
            _first_test_image(cfg, runner)
        del runner
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _for_rehearsal(cfg: Config, folder: str) -> Config:
    """A copy for one process that reads no more than it must and writes to ``folder``."""
    quiet = copy.deepcopy(cfg)
    object.__setattr__(quiet, "_format_python_code", False)  # formatting takes a second, and nobody reads this config
    name = f"rehearsal_{time.time_ns()}"
    quiet.update(work_dir=folder, launcher="none", log_level="ERROR", experiment_name=name)
    if isinstance(quiet.get("visualizer"), dict):
        quiet.visualizer.update(name=name, save_dir=folder)
    for part in ("train", "val", "test"):
        loader = quiet.get(f"{part}_dataloader")
        if loader:
            for key in ("persistent_workers", "prefetch_factor", "timeout", "multiprocessing_context"):
                loader.pop(key, None)
            loader.update(num_workers=0)
            for dataset in entries(loader, "MaskDataset"):
                dataset.serialize_data = False
            if part == "train" and "batch_sampler" not in loader:
                loader.batch_size = min(loader.get("batch_size", 1), _SAMPLES)
    return quiet


def _first_training_step(cfg: Config, runner: SegmentorRunner) -> None:
    with errors_in_one_line(cfg, "train_dataloader and train_cfg"):
        loop: Any = runner.build_train_loop(runner._train_loop)
        runner._train_loop = loop
        check_sizes(loop.dataloader.dataset, str(cfg.filename))
    with errors_in_one_line(cfg, "optim_wrapper"):
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    with errors_in_one_line(cfg, "param_scheduler"):
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    with errors_in_one_line(cfg, "val_dataloader, val_cfg and val_evaluator"):
        if runner._val_loop is not None:
            runner._val_loop = runner.build_val_loop(runner._val_loop)
    with errors_in_one_line(cfg, "model's first weights"):
        runner.call_hook("before_run")
        runner._init_model_weights()
    with errors_in_one_line(cfg, f"{'‹resume›' if cfg.get('resume') else '‹load_from›'} {cfg.get('load_from')}"):
        runner.load_or_resume()
    with errors_in_one_line(cfg, "train_dataloader, the first items"):
        batch = next(iter(loop.dataloader))
    with errors_in_one_line(cfg, "the first training step"):
        runner.optim_wrapper.initialize_count_status(runner.model, loop.iter, loop.max_iters)
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        loop.run_iter(*([0] if isinstance(loop, EpochBasedTrainLoop) else []), batch)
        for scheduler in runner.schedules():  # some are stepped after an epoch only
            scheduler.step()
    if runner._val_loop is not None:
        with errors_in_one_line(cfg, "the first validation"):
            _score_one_item(runner.val_loop, runner.model)


def _first_test_image(cfg: Config, runner: SegmentorRunner) -> None:
    with errors_in_one_line(cfg, "test_dataloader, test_cfg and test_evaluator"):
        runner._test_loop = runner.build_test_loop(runner._test_loop)
        check_sizes(runner.test_dataloader.dataset, str(cfg.filename))
    with errors_in_one_line(cfg, f"‹load_from› {cfg.get('load_from')}"):
        runner.load_or_resume()
    with errors_in_one_line(cfg, "the first test image"):
        _score_one_item(runner.test_loop, runner.model)


@torch.no_grad()
def _score_one_item(loop: Any, model: Any) -> None:
    """One item through the model and all scores of it."""
    model.eval()
    if not len(loop.dataloader.dataset):
        raise InputError("there is no image to test on")
    batch = next(iter(loop.dataloader))
    outputs = model.test_step(batch)
    loop.evaluator.process(data_samples=outputs, data_batch=batch)
    loop.evaluator.evaluate(len(outputs))


def _check_memory(cfg: Config, loaders: Sequence[str]) -> None:
    """Refuses crops and batches whose pixels alone are more than this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    sizes = [preprocessor.get("size"), *(crop.get("crop_size") for crop in entries(cfg.get(loaders[0]), "RandomCrop"))]
    pixels = max([1, *map(_area, sizes)])
    for name in loaders:
        batch = (cfg.get(name) or {}).get("batch_size", 1)
        if (needed := 12 * pixels * batch) > memory:
            raise InputError(
                f"{cfg.filename}, {name}: {batch} images of {pixels} px need {needed >> 30} GiB, this "
                f"machine has {memory >> 30}; lower batch_size or crop_size"
            )


def _area(size: Any) -> int:
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    numbers = [int(side) for side in sides if isinstance(side, (int, float)) and not isinstance(side, bool)]
    return numbers[0] * numbers[-1] if numbers else 1

"""Training of a segmentor: mmengine's Runner on an mmseg config."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import CheckpointLoader

from common.command import note
from common.errors import InputError
from common.files import check_writable, only_writer, room_for
from common.segmentor_options import TrainOptions
from segmentation.config import errors_in_one_line
from segmentation.config_changes import save_between_updates, set_seed
from segmentation.data_check import LOADERS, check_files
from segmentation.rehearsal import rehearse
from segmentation.resolved_config import resolve
from segmentation.runner import SegmentorRunner, globals_restored, join_processes
from segmentation.saving import POINTER, last_weights
from segmentation.training_data import set_training_data
from segmentation.validation import chosen_on_test, set_validation


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind.

    Attributes:
        work_dir: holds the weights, the log and the resolved config.
        weights: the last that were saved; None if there are none, and in processes beside the first.
        best: those with the best score on the validation images, if it validates.
        best_score: theirs, 0..1.
    """

    work_dir: Path
    weights: Path | None
    best: Path | None
    best_score: float | None


def training_config(options: TrainOptions) -> Config:
    """The config that ``train`` takes.

    Raises:
        InputError: see ``resolved_config.resolve`` and ``set_training_data``; or it validates on nothing that the
            options could change.
    """
    config = resolve(options)
    set_training_data(config, options)
    set_validation(config, options.val_split, options.val_interval, options.best)
    config.resume = options.resume
    save_between_updates(config)
    return config


def train(options: TrainOptions) -> Trained:
    """Trains; a stopped training goes on with ``resume`` to the weights of an unbroken one.

    Raises:
        InputError: anything that does not fit, before the work; or a loss that is no number.
    """
    config = training_config(options)
    if not options.unchecked:
        check_files(config, LOADERS["train"], options.several_maps)
    if not (config.get("train_dataloader") and config.get("train_cfg") and config.get("optim_wrapper")):
        raise InputError(
            f"{config.filename}: nothing to train with: needs train_dataloader, train_cfg and optim_wrapper"
        )
    if options.resume:
        _take_up(config, options)
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    first = config.launcher == "none" or rank == 0
    if first and (notice := chosen_on_test(config)):
        note(notice)
    rehearse(config, "train")
    folder = check_writable(config.work_dir, "‹work_dir›")
    with only_writer(folder, "‹work_dir›") if first else contextlib.nullcontext(), room_for("‹work_dir›", folder):
        if options.resume:  # another process may have trained on, while this one looked at the files
            _take_up(config, options)
        join_processes(config.launcher)
        with globals_restored(), errors_in_one_line(config, f"training (see the log in {folder})"):
            runner = SegmentorRunner.from_cfg(config)
            runner.train()
        best = runner.message_hub.runtime_info.get("best_ckpt")
        last = folder / POINTER
        return Trained(
            folder,
            Path(last.read_text().strip()) if is_main_process() and last.is_file() else None,
            Path(best) if best else None,
            runner.message_hub.get_info("best_score") if best else None,
        )


def _take_up(config: Config, options: TrainOptions) -> None:
    """Says in the config where a resumed training goes on, with that one's seed; without weights there, it starts.

    Raises:
        InputError: another seed is given.
    """
    weights = options.load_from or last_weights(Path(config.work_dir))
    config.load_from, config.resume = (str(weights), True) if weights else (None, False)
    if not weights:
        return
    content = CheckpointLoader.load_checkpoint(config.load_from, "cpu")
    meta = content.get("meta") if isinstance(content, dict) else None
    seed = meta.get("seed") if isinstance(meta, dict) else None
    if type(seed) is int and 0 <= seed < 2**31:
        if options.seed not in (None, seed):
            raise InputError(
                f"‹seed› {options.seed}: {weights} was trained with seed {seed}; leave ‹seed› out, or name "
                "another ‹work_dir›"
            )
        set_seed(config, seed)

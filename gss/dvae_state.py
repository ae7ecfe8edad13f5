"""The state of a dVAE's training beside its output, from which a run that was stopped goes on to the same weights."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InputError
from common.files import atomic_path, digest
from common.schema import one_line
from common.stamps import changed
from gss.weights import read_checkpoint

if TYPE_CHECKING:
    from gss.dvae_training import DvaeTrainingOptions, Trainer

_PARTS = ("dvae", "codes", "optimizer", "schedule")
_FROM_CODES = ("encoder.blocks.output.", "decoder.blocks.input.")  # layers that the codes become: not optimized
_FREE = ("device", "save_every", "test_masks", "masks", "palette", "out", "logger")  # options that may differ


def settings(options: DvaeTrainingOptions, palette: NDArray[Any], masks: list[Path]) -> dict[str, str]:
    """What must be the same when a run goes on: options, colors (N + 1, 3), and the contents of masks."""
    same = {key: str(value) for key, value in asdict(options).items() if key not in _FREE}
    return {**same, "palette": digest(palette.tolist()), "masks": digest([path.name for path in masks], *masks)}


def check_finite(trainer: Trainer, step: int) -> None:
    """Refuses to keep what a training that diverged has made.

    Raises:
        InputError: weights or codes are no numbers any more.
    """
    for value in (*trainer.dvae.state_dict().values(), *trainer.codes.state_dict().values()):
        if value.is_floating_point() and not torch.isfinite(value).all():
            rate = f"‹learning_rate› (it is {trainer.options.learning_rate:g})"
            raise InputError(f"step {step}: weights are no numbers any more; take a smaller {rate}")


def save_state(trainer: Trainer, path: Path, step: int, same: dict[str, str]) -> None:
    """Writes everything that the next step depends on; ``step`` is its number.

    Raises:
        InputError: see ``check_finite``.
    """
    check_finite(trainer, step)
    parts = {name: getattr(trainer, name).state_dict() for name in _PARTS}
    with atomic_path(path) as temporary:
        torch.save({"step": step, "settings": same, **parts}, temporary)


def restore(trainer: Trainer, path: Path, same: dict[str, str]) -> int:
    """Takes over a saved state; the number of the next step.

    Args:
        trainer: as at the start of a training.
        path: the state.
        same: ``settings`` of this run.

    Raises:
        InputError: it is damaged, no state, or of a run with other settings.
    """
    steps, remedy = trainer.options.steps, f"remove {path}, and training starts anew"
    try:
        saved = read_checkpoint(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    there, step = saved.get("settings"), saved.get("step")
    if not isinstance(there, dict):
        raise InputError(f"{path}: no state of a training of this kind; {remedy}")
    if other := changed(there, same):
        raise InputError(
            f"‹out› {trainer.options.out}: {path} is of a run with other settings ({', '.join(other)}); "
            f"{remedy}, or write elsewhere"
        )
    if type(step) is not int or not 0 < step <= steps:
        raise InputError(f"{path}: step {one_line(step, 40)} of {steps}; {remedy}")
    expected = _state_after_a_step(trainer)
    for name in _PARTS:
        if fault := _difference(name, saved.get(name), expected[name]):
            raise InputError(f"{path}: {fault}; {remedy}")
    if saved["schedule"]["last_epoch"] != step:
        raise InputError(f"{path}: its learning rate is of another step; {remedy}")
    for name in _PARTS:
        getattr(trainer, name).load_state_dict(saved[name])
    return step


def _state_after_a_step(trainer: Trainer) -> dict[str, Any]:
    """States of the shape that they have after a step: the optimizer then has two averages a weight."""
    expected = {name: getattr(trainer, name).state_dict() for name in _PARTS}
    weights = enumerate([*trainer.dvae.named_parameters(), *trainer.codes.named_parameters()])
    expected["optimizer"]["state"] = {
        i: {"step": torch.tensor(0.0), "exp_avg": weight, "exp_avg_sq": weight}
        for i, (part, weight) in weights
        if not part.startswith(_FROM_CODES)
    }
    return expected


def _difference(name: str, value: Any, like: Any) -> str | None:
    """What makes a saved value unusable in place of another, or None: kind, fields, shape, or numbers that are none."""
    if isinstance(like, Tensor):
        if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
            return f"{name} is not of shape {tuple(like.shape)} and type {like.dtype}"
        return None if not value.is_floating_point() or torch.isfinite(value).all() else f"{name} holds no numbers"
    if isinstance(like, dict):
        if not isinstance(value, dict) or set(value) != set(like):
            return f"{name} has other fields"
        return next(filter(None, (_difference(f"{name}.{key}", value[key], like[key]) for key in like)), None)
    if isinstance(like, (list, tuple)):
        if not isinstance(value, type(like)) or len(value) != len(like):
            return f"{name} has another length"
        faults = (_difference(f"{name}.{i}", *pair) for i, pair in enumerate(zip(value, like, strict=True)))
        return next(filter(None, faults), None)
    if isinstance(like, (int, float)) and not isinstance(like, bool):
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if fine else f"{name} is no number"
    return None if type(value) is type(like) else f"{name} is no {type(like).__name__}"

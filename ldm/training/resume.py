"""Going on with a run: what may be resumed, checked before anything is written, and what has changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from torch import Tensor

from common.errors import InputError
from common.schema import OpenSchema, one_line, parse
from common.weights import read_checkpoint
from ldm.training.checkpoints import CONFIG_NAME, FOLDER, LAST

_TRAINING = ("optimizer_states", "lr_schedulers", "loops")  # what weights alone lack
# They shape the weights that a run starts from; a checkpoint's weights would silently win.
_OF_THE_START = ("version", "zero_init")


class _Loops(OpenSchema):
    fit_loop: dict[str, Any]


class _Optimizer(OpenSchema):
    state: dict[int | str, dict[str, Any]]
    param_groups: list[dict[str, Any]] = Field(min_length=1)


class _Header(OpenSchema):
    global_step: int = Field(ge=0)


class TrainingState(OpenSchema):
    """What a checkpoint of a training holds, of what is needed to go on."""

    epoch: int = Field(ge=0)
    global_step: int = Field(ge=0)
    state_dict: dict[str, Tensor] = Field(min_length=1)
    loops: _Loops
    optimizer_states: list[_Optimizer] = Field(min_length=1)
    lr_schedulers: list[dict[str, Any]] = Field(min_length=1)

    model_config = {**OpenSchema.model_config, "arbitrary_types_allowed": True}


def resume_checkpoint(path: Path) -> Path:
    """The checkpoint to resume: the file itself, or a run folder's newest.

    Raises:
        InputError: there is none, or it lies in no run's folder.
    """
    checkpoint = path / FOLDER / LAST if path.is_dir() else path
    if not checkpoint.is_file():
        begun = path.is_dir() and (path / CONFIG_NAME).exists()
        others = sorted((path / FOLDER).glob("[!.]*.ckpt"), key=lambda file: file.stat().st_mtime) if begun else []
        remedy = "; the run ended before it saved: give its first command again" if begun else ""
        remedy = f"; take ‹resume› {others[-1]}" if others else remedy
        raise InputError(f"‹resume› {path}: there is no {checkpoint}{remedy}")
    if checkpoint.absolute().parent.name != FOLDER:
        raise InputError(
            f"‹resume› {path}: lies in no run's folder (RUN/{FOLDER}/NAME.ckpt), where it would go on; "
            "move it there, or take ‹pretrain_path› for its weights alone"
        )
    return checkpoint


def held_step(path: Path) -> int:
    """The step that a checkpoint holds, read from the file.

    Raises:
        InputError: no checkpoint.
    """
    content = read_checkpoint(path)
    return parse({"global_step": content.get("global_step")}, _Header, str(path)).global_step


def read_training_state(path: Path) -> TrainingState:
    """Reads a checkpoint of a training.

    Raises:
        InputError: damaged, weights alone, or of another kind; says what to do.
    """
    other = f"take ‹resume› RUN/{FOLDER}/NAME.ckpt of an earlier checkpoint, if there is one"
    try:
        content = read_checkpoint(path)
    except InputError as error:
        raise InputError(f"‹resume› {error}; {other}") from error
    lacking = [key for key in _TRAINING if not (isinstance(content, Mapping) and content.get(key))]
    if lacking:
        raise InputError(
            f"‹resume› {path}: no checkpoint of a training (it lacks {', '.join(lacking)}); take "
            "‹pretrain_path› for weights alone"
        )
    return parse(dict(content), TrainingState, f"‹resume› {path}", other)


def check_fits(
    model: pl.LightningModule, state: TrainingState, path: Path, changed: Mapping[str, tuple[Any, Any]]
) -> None:
    """Refuses a checkpoint whose weights, tables or optimizer are not those of the model.

    Args:
        model: as the configuration builds it.
        state: of the checkpoint.
        path: its file.
        changed: of the configuration since that run's, see ``changes``.

    Raises:
        InputError: what does not fit, and what was changed.
    """
    model.setup("fit")  # its running averages
    own = model.state_dict()
    lacks, more = sorted(own.keys() - state.state_dict.keys()), sorted(state.state_dict.keys() - own.keys())
    other = [
        f"{key}: {_size(state.state_dict[key])} in the file, {_size(own[key])} in the model"
        for key in own
        if key in state.state_dict and own[key].shape != state.state_dict[key].shape
    ]
    faults = [
        _first(names, what)
        for names, what in ((lacks, "lacks"), (more, "has beyond the model"), (other, "has of another size"))
        if names
    ]
    if not faults:
        constant = [name for name, _ in model.named_buffers() if name in own and not name.startswith("model_ema.")]
        tables = [
            name
            for name in constant
            if not torch.allclose(own[name].float(), state.state_dict[name].float(), rtol=1e-4, atol=1e-6)
        ]
        if tables:
            faults.append(_first(tables, "has other values of"))
    if not faults:
        trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        faults += _optimizer_faults(state, trained, getattr(model, "optimizer", "adamw"))
    start = [key for key in changed if key.startswith("model.") and key.rsplit(".", 1)[-1] in _OF_THE_START]
    if start and not faults:
        faults.append(f"holds the weights, which {start[0]} would change at the start of a run alone")
    if faults:
        of_model = {key: values for key, values in changed.items() if key.startswith("model.")}
        why = f" (changed: {_listed(of_model)})" if of_model else ""
        raise InputError(
            f"‹resume› {path}: does not fit the model{why}: it {'; it '.join(faults)}. Resume with the "
            "run's own values, or start another run from its weights by ‹pretrain_path›"
        )


def _optimizer_faults(state: TrainingState, parameters: list[Tensor], kind: str) -> list[str]:
    optimizer = state.optimizer_states[0]
    numbers = [number for group in optimizer.param_groups for number in group.get("params", ())]
    if len(numbers) != len(parameters):
        return [f"has trained {len(numbers)} tensors, and {len(parameters)} train now"]
    for number, parameter in zip(numbers, parameters, strict=True):
        kept = optimizer.state.get(number, {}) if isinstance(number, int) else {}
        if kept and ("exp_avg" in kept) == (kind == "adamw_8bit"):
            return [f"has the state of another optimizer than {kind} ({', '.join(sorted(kept)[:3])})"]
        for name, value in kept.items():
            if name.startswith("exp_avg") and not (isinstance(value, Tensor) and value.shape == parameter.shape):
                return [f"has an optimizer's state of other tensors ({name} of number {number})"]
    return []


def _first(names: list[str], what: str, shown: int = 2) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return f"{what} {', '.join(names[:shown])}{more}"


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(changed: Mapping[str, tuple[Any, Any]], shown: int = 4) -> str:
    lines = [f"{key} from {one_line(old, 40)} to {one_line(new, 40)}" for key, (old, new) in changed.items()]
    return ", ".join(lines[:shown]) + (f", and {len(lines) - shown} more" if len(lines) > shown else "")


def changes(before: DictConfig, after: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Values that differ between two configurations: dotted name -> (before, after); None where there is none."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _leaves(config: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    value: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key!s}" if name else str(key))
    else:
        yield name, value

"""Weights of dVAEs and GSS models, read by the one reader (``common.weights``), and the published pickled modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from common.pickles import Inert
from common.weights import MODULES, CodeError, refuse_not_finite, tensors_of
from common.weights import read_checkpoint as read_any

DEPTH = 50  # of modules in modules


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a file of weights holds, as a mapping; the tensors of a .safetensors file under ``state_dict``.

    Raises:
        InputError: no such file; not a checkpoint; or it would have to run code.
    """
    loaded = _read(path, mapped=False)
    if not isinstance(loaded, dict):
        raise InputError(f"weights {path}: holds a {type(loaded).__name__}, not a checkpoint")
    return {"state_dict": loaded} if loaded and all(isinstance(v, Tensor) for v in loaded.values()) else loaded


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a checkpoint: its ``state_dict``, ``model``, or the whole.

    Raises:
        InputError: see ``read_checkpoint``; there are no tensors in it, or some that are NaN or infinite.
    """
    state = tensors_of(_read(path), path)
    refuse_not_finite(state, path, "take another checkpoint")
    return state


def _read(path: str | Path, mapped: bool = True) -> Any:
    try:
        return read_any(path, mapped)
    except CodeError as error:
        raise InputError(
            f"weights {error}; the published encoder.pkl and decoder.pkl are converted once by scripts/convert_dvae.py"
        ) from error
    except InputError as error:
        raise InputError(f"weights {error}") from error


def write_state_dict(state: dict[str, Tensor], path: str | Path) -> None:
    """Writes tensors by name: as .safetensors, or, for any other suffix, as a checkpoint that mmengine loads."""
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)


def read_pickled_module(path: str | Path) -> dict[str, Tensor]:
    """State dict of a pickled module, such as the published ``encoder.pkl``, without running any code from it.

    Args:
        path: file written by ``torch.save(module, path)``.

    Returns:
        Tensors on the CPU by their name in the module, in single precision.

    Raises:
        InputError: no such file, or it holds anything beside modules and tensors.
    """
    tensors: dict[str, Tensor] = {}
    _collect(read_any(path, inert=MODULES), "", tensors, path)
    if not tensors:
        raise InputError(f"pickle {path}: holds no module with parameters")
    refuse_not_finite(tensors, path, "take another checkpoint")
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor], path: str | Path) -> None:
    if not isinstance(module, Inert) or not isinstance(module.state, dict):
        return
    if prefix.count(".") > DEPTH:
        raise InputError(f"pickle {path}: holds modules that contain one another")
    for group in ("_parameters", "_buffers"):
        for name, value in _entries(module.state.get(group)):
            if isinstance(value, Tensor):
                tensors[prefix + name] = value.detach().float()
    for name, child in _entries(module.state.get("_modules")):
        _collect(child, f"{prefix}{name}.", tensors, path)


def _entries(group: Any) -> list[tuple[str, Any]]:
    return [(str(name), value) for name, value in group.items()] if isinstance(group, dict) else []

"""Reading weights without running code from them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from numpy._core import multiarray
from torch import Tensor

from common.errors import InputError


def _statistic(owner: Any, name: str) -> Any:
    """``getattr`` for what a pickled ``HistoryBuffer`` refers to: its own statistics."""
    if owner is not HistoryBuffer or name not in ("current", "max", "mean", "min"):
        raise pickle.UnpicklingError(f"it asks for {name} of {owner}")
    return getattr(owner, name)


# what mmengine keeps in a checkpoint beside tensors
_SAFE: list[Any] = [
    HistoryBuffer,
    (_statistic, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    multiarray._reconstruct,
    multiarray.scalar,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "uint32", "bool", "uint8")),
]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a .safetensors file or a torch checkpoint of tensors and plain values.

    Raises:
        InputError: no such file; not a checkpoint; or it would have to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return {"state_dict": load_file(path)}
        except Exception as error:
            raise InputError(f"weights {path}: not a safetensors file ({error})") from error
    try:
        with torch.serialization.safe_globals(_SAFE):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        lines = [line for line in str(error).splitlines() if "nsupported" in line] or str(error).splitlines() or [""]
        reason = lines[0].split(". Please")[0].strip()
        raise InputError(
            f"weights {path}: not a checkpoint of tensors alone ({reason}); the published encoder.pkl and decoder.pkl "
            "are converted once by scripts/convert_dvae.py"
        ) from error
    if not isinstance(loaded, dict):
        raise InputError(f"weights {path}: holds a {type(loaded).__name__}, not a checkpoint")
    return loaded


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a checkpoint: its ``state_dict``, ``model``, or the whole.

    Raises:
        InputError: see ``read_checkpoint``; or there are no tensors in it.
    """
    checkpoint = read_checkpoint(path)
    for field in ("state_dict", "model"):
        if isinstance(checkpoint.get(field), dict):
            checkpoint = checkpoint[field]
            break
    tensors = {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"weights {path}: holds no tensors")
    return tensors


def write_state_dict(state: dict[str, Tensor], path: str | Path) -> None:
    """Writes tensors by name: as .safetensors, or, for any other suffix, as a checkpoint that mmengine loads."""
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)


class _Inert:
    """Stands for a module class of a pickle: holds the attributes, runs nothing."""

    dump_patches = False  # asked for by the old container

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes and drops whatever the pickle passes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _ModuleUnpickler(pickle.Unpickler):
    """Unpickles modules of ``dall_e`` and ``torch.nn`` as inert objects, tensors as tensors, and nothing else."""

    _ALLOWED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("torch", "device"): torch.device,
        ("torch", "Size"): torch.Size,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return self._ALLOWED[module, name]
        package = module.split(".")
        if (
            (package[0] == "dall_e" or package[:3] == ["torch", "nn", "modules"])
            and name[0].isupper()
            and "." not in name
        ):
            return _Inert
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor or module of a dVAE")


def read_pickled_module(path: str | Path) -> dict[str, Tensor]:
    """State dict of a pickled module, such as the published ``encoder.pkl``, without running any code from it.

    Args:
        path: file written by ``torch.save(module, path)``.

    Returns:
        Tensors on the CPU by their name in the module.

    Raises:
        InputError: no such file, or it holds anything beside modules and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"pickle {path}: no such file")

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise InputError(f"pickle {path}: refused, it is a TorchScript program")

    def load(file: Any, **kwargs: Any) -> Any:  # the old container's header: numbers and plain dicts
        return _ModuleUnpickler(file, **kwargs).load()

    restricted = SimpleNamespace(__name__="restricted", Unpickler=_ModuleUnpickler, load=load)
    try:
        with warnings.catch_warnings():  # the classes' source is not the recorded one: there is none
            warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
            module = torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"pickle {path}: refused, {reason}") from error
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    if not tensors:
        raise InputError(f"pickle {path}: holds no module with parameters")
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    attributes = getattr(module, "__dict__", {})
    for group in ("_parameters", "_buffers"):
        for name, value in (attributes.get(group) or {}).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value.detach().float()
    for name, child in (attributes.get("_modules") or {}).items():
        _collect(child, f"{prefix}{name}.", tensors)

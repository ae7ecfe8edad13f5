"""Weights for segmentors, read without running code from the file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import nn

from common.errors import InputError


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint file's content; tensors, numbers, strings and mmengine's message buffers only.

    mmengine falls back to unpickling anything; with this loader registered, it does not.

    Raises:
        InputError: no such file, or one that holds something else.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a checkpoint that can be read without running its code ({reason})"
                                ) from error


CheckpointLoader.register_scheme("", load_from_local, force=True)


def load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Loads a checkpoint's weights into a segmentor; only auxiliary heads, for training, may be absent or surplus.

    Returns:
        The checkpoint's ``meta``.

    Raises:
        InputError: the weights are another model's.
    """
    checkpoint = load_from_local(path, "cpu")
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    weights = {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    expected = model.state_dict()

    def needed(key: str) -> bool:
        return not key.startswith(("auxiliary_head.", "data_preprocessor."))

    differences = [f"{key} is missing" for key in expected if key not in weights and needed(key)]
    differences += [f"{key} is unknown" for key in weights if key not in expected and needed(key)]
    differences += [
        f"{key} is {tuple(value.shape)}, the config's {tuple(expected[key].shape)}"
        for key, value in weights.items() if key in expected and value.shape != expected[key].shape
    ]
    if differences:
        raise InputError(f"{path}: weights of another model than the config's: {'; '.join(differences[:3])}"
                                f"{f'; and {len(differences) - 3} more' if len(differences) > 3 else ''}")
    model.load_state_dict(weights, strict=False)
    return checkpoint.get("meta") or {}

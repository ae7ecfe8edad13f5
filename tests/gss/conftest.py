"""The golden heads and dVAEs of GSS, built from their recipe."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import gss  # noqa: F401  (registers the heads)

TINY = {
    "encoder": {"n_hid": 4, "n_blk_per_group": 1, "vocab_size": 32},
    "decoder": {"n_init": 4, "n_hid": 4, "n_blk_per_group": 1, "vocab_size": 32},
}


@pytest.fixture(scope="session")
def records(golden: Path) -> Path:
    folder = golden / "gss"
    if not folder.is_dir():
        pytest.skip("the records of GSS are not at hand")
    return folder


@pytest.fixture(scope="session")
def settings(records: Path) -> dict[str, Any]:
    return json.loads((records / "head_configs.json").read_text())


@pytest.fixture(scope="session")
def golden_tensor(recipe: ModuleType) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """Value of a head's floating entry, as the records' README defines it."""

    def tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        value, last = recipe.noise(key, tuple(shape)).astype(np.float64), key.rsplit(".", 1)[-1]
        if key == "d_vae.decoder.blocks.input.w":
            pass
        elif len(shape) >= 2:
            value = (value / np.sqrt(np.prod(shape[1:]))).astype(np.float32).astype(np.float64)
            if key.startswith("d_vae.encoder.") and len(shape) == 4:
                value -= value.mean((1, 2, 3), keepdims=True)
        elif last == "running_mean":
            value *= 0.1
        elif last == "running_var":
            value = 1 + np.abs(0.1 * value)
        elif last == "weight":
            value = 1 + 0.1 * value
        else:
            value *= 0.05
        return torch.from_numpy(value.astype(np.float32))

    return tensor


@pytest.fixture(scope="session")
def golden_dvae(settings, golden_tensor):
    from gss.dvae import DVAE

    dvae = DVAE(encoder=settings["mini_encoder"], decoder=settings["mini_decoder"])
    dvae.load_state_dict({key: golden_tensor(f"d_vae.{key}", v.shape) for key, v in dvae.state_dict().items()})
    return dvae


@pytest.fixture(scope="session")
def build_golden_head(settings, golden_tensor):
    """build(kind) -> the records' head with their weights; kind is FF, SF or FTW."""
    from mmseg.registry import MODELS

    values: dict[Any, torch.Tensor] = {}

    def build(kind: str) -> torch.nn.Module:
        config = {**copy.deepcopy(settings["base"]), "type": settings["classes"][kind]}
        config |= copy.deepcopy(settings["FTW_extra"]) if kind == "FTW" else {}
        config["d_vae"] = {"encoder": settings["mini_encoder"], "decoder": settings["mini_decoder"]}
        head = MODELS.build(config)
        state = head.state_dict()
        for key, value in state.items():
            if value.is_floating_point():
                if (key, value.shape) not in values:
                    values[key, value.shape] = golden_tensor(key, value.shape)
                state[key] = values[key, value.shape]
        head.load_state_dict(state)
        return head

    return build

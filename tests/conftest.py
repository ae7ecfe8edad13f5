"""Paths and small models that tests share."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to others

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
MBRSC = SHARED / "data" / "mbrsc"

torch.set_num_threads(2)


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden records; skips where it is absent."""
    return _present(GOLDEN)


@pytest.fixture(scope="session")
def mbrsc() -> Path:
    """Folder of the real data; skips where it is absent."""
    return _present(MBRSC)


@pytest.fixture(scope="session")
def recipe(golden: Path) -> ModuleType:
    """The golden records' recipe of weights and inputs."""
    spec = importlib.util.spec_from_file_location("recipe", golden / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden_model(golden: Path, recipe: ModuleType) -> torch.nn.Module:
    """The golden records' small model with their weights, from the published YAML; do not change it."""
    from cldm.build import create_model

    model = create_model(golden / "tisynth_small.yaml")
    keys = json.loads((golden / "tisynth_small_keys.json").read_text())
    state = model.state_dict()
    with torch.no_grad():
        for name in set(keys) - recipe.SCHEDULE_BUFFERS:
            state[name].copy_(torch.from_numpy(recipe.weight(name, tuple(keys[name]))))
    return model.requires_grad_(False)

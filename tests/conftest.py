"""Paths and small models that tests share."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to others

import pytest
import torch

from common.yapf_cache import write_grammars_whole

write_grammars_whole()  # several workers import mmengine at once

# What a script starts in the background ignores Ctrl-C, and so does all that it starts: commands under test must not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
MBRSC = SHARED / "data" / "mbrsc"

# One thread a worker of pytest-xdist, which are as many as there are cores.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the harnesses of ``tests/faults`` run; a short run each by default (docs/reliability.md)."""
    group = parser.getgroup("faults")
    group.addoption("--mutations", type=int, default=None, help="mutated inputs of each kind (some 20)")
    group.addoption("--kills", type=int, default=1, help="kills of each command at random moments (1)")
    group.addoption("--seed", type=int, default=1, help="of mutations and kills (1)")


# Begun first, so that several processes, each of which takes one file after the other, end together.
LONGEST = (
    "training/test_resume.py",
    "training/test_training.py",
    "synthesis/test_synthesis.py",
    "synthesis/test_several_processes.py",
    "faults/test_kills.py",
    "test_package.py",
    "test_notebook.py",
    "faults/test_configurations.py",
    "segmentation/test_segmentor_resume.py",
    "segmentation/test_proof_commands.py",
    "gss/test_scripts.py",
    "gss/test_training.py",
    "gss/test_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the longest files first."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden records."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def mbrsc() -> Path:
    """Folder of the real data; skips where it is absent."""
    return _present(MBRSC)


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """The golden records' recipe of weights and inputs."""
    return importlib.import_module("tests.golden.recipe")


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


SMALL = ROOT / "tests" / "small.yaml"


def without_a_class_table(folder: Path, classes: Path) -> tuple[Path, Path]:
    """A model with a channel a class whose file names no class table, and weights of one of these classes."""
    from omegaconf import OmegaConf

    from cldm.build import create_model
    from ldm.checkpoint import save_state_dict

    config, weights = folder / "no_table.yaml", folder / "no_table.safetensors"
    content = OmegaConf.load(SMALL)
    content.model.params.hint_encoding = "onehot"
    content.model.params.control_stage_config.params.hint_channels = None
    OmegaConf.save(content, config)
    save_state_dict(create_model(config, classes=str(classes)).state_dict(), weights)
    return config, weights


def small_model(spread: float):
    """The model of ``SMALL`` with normal random numbers for weights: nothing in it is zero."""
    from cldm.build import create_model

    torch.manual_seed(0)
    model = create_model(SMALL, classes="MBRSC").requires_grad_(False)
    for part in (*model.branches, model.model):
        for weight in part.parameters():
            weight.copy_(torch.randn_like(weight) * spread)
    return model


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of the demonstration's generator: 8 training, 4 test scenes of 32 px."""
    out = tmp_path_factory.mktemp("scenes")
    options = ["--train", "8", "--test", "4", "--references", "4", "--size", "32"]
    script = str(ROOT / "demo" / "make_data.py")
    subprocess.run([sys.executable, script, "--out", str(out), *options], check=True, capture_output=True)
    return out


@pytest.fixture(autouse=True, scope="session")
def _plain_config_texts() -> None:
    """mmengine lays out a config's text each time it builds a runner or saves; it takes seconds and changes nothing."""
    from yapf.yapflib import yapf_api

    yapf_api.FormatCode = lambda text, **_: (text, True)


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage() -> None:
    """mmengine collects garbage for each data set that it builds: half a second, of objects of libraries alone."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a command leaves in its process (LOCAL_RANK, permissions, a bar cut off) ends with its test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if weights := sys.modules.get("segmentation.checkpoint"):
        weights._allowed.clear()  # addresses that the user named
    if bars := getattr(sys.modules.get("tqdm"), "tqdm", None):
        getattr(bars, "_instances", set()).clear()  # the next bar would be drawn below one that was never closed
    if command := sys.modules.get("common.command"):
        command._read.clear()


class Cli:
    """Runs a command of ``scripts`` in this process, as ``python -m`` would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, command: str, *args: object, code: int = 0) -> str:
        """Runs ``scripts.<command>``, checks its exit code, and returns what it printed."""
        self._monkeypatch.setattr(sys, "argv", [command, *map(str, args)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_module(f"scripts.{command}", run_name="__main__")
        output = self._capsys.readouterr()
        assert end.value.code == code, output.out[-2000:] + output.err[-4000:]
        return output.out + output.err

    def refused(self, command: str, *args: object) -> str:
        """Runs a command that must refuse its input in one line, with exit code 2; returns that line."""
        output = self(command, *args, code=2)
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in output, output
        return errors[0]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs commands; see ``Cli``."""
    return Cli(monkeypatch, capsys)

"""The package ``tisynth``: what is built, installed and called from a folder that knows nothing of this checkout."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import torch
from packaging.requirements import Requirement

import tisynth
from common import house
from tests.conftest import ROOT, SMALL
from tests.test_command_line import COMMANDS as SCRIPTS
from tisynth.__main__ import COMMANDS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = {"ruff", "mypy", "pytest", "pytest-xdist", "setuptools"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment's commands: the wheel in it, and all else borrowed from the one that tests."""
    place = tmp_path_factory.mktemp("package")
    source = place / "source"
    for folder in (*house.HOUSE, "tisynth", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(place)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    wheel = place / done.stdout.splitlines()[-1]

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "env"], check=True)
    python = place / "env" / "bin" / "python"
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    borrowed = Path(torch.__file__).parents[1]
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, env=environment())
    added = {entry.name for entry in site.iterdir()} - {"borrowed.pth"}
    assert added == {"tisynth", f"tisynth-{PROJECT['version']}.dist-info"}
    return python.parent


def environment():
    """This process's variables without the way to the checkout."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def call(installed, tmp_path):
    """Runs a program of the environment in an empty folder; what it printed."""

    def call(program, *words, code=0):
        done = subprocess.run(
            [installed / program, *map(str, words)], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    return call


def test_the_command_lists_its_commands_at_once(call):
    told = call("tisynth", "--help")
    assert [line.split()[0] for line in told.splitlines()[2:]] == [*COMMANDS, "configs"]
    assert call("tisynth", "--version").strip() == PROJECT["version"]
    call("python", "-c", "import sys, tisynth.__main__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)")
    assert call("tisynth", "paint", code=2).startswith("error: 'paint' is no command")
    told = call("tisynth", "resample", "--help")
    assert told.startswith("usage: tisynth resample [-h]") and "  tisynth resample --filtered-mask-path" in told


@pytest.mark.parametrize("name", [*house.HOUSE, "configs", "tests"])
def test_no_other_name_is_taken(call, name):
    assert "ModuleNotFoundError" in call("python", "-c", f"import {name}", code=1)


def test_a_small_model_paints_and_a_segmentor_trains(call, scenes, tmp_path):
    items = (scenes / "inference_set_items.json").read_text().splitlines()
    (tmp_path / "one.json").write_text(items[0] + "\n")
    words = ["--config", SMALL, "--ckpt", "small.safetensors", "--data-root", scenes, "--txt-file", "one.json"]
    words += ["--classes", scenes / "classes.json", "--outdir", "out", "--gpus", "cpu", "--ddim-steps", 2]
    paint = ["synthesize", *map(str, words), "--num-workers", "0"]
    config = Path(call("tisynth", "configs").strip()) / "mmseg" / "tiny.py"
    words = [config, "--work-dir", "segmentor", "--data-root", scenes, "--classes", scenes / "classes.json"]
    words += ["--crop-size", 32, "--max-iters", 2, "--cfg-options", "train_dataloader.num_workers=0"]
    learn = ["segmentor", "train", *map(str, words), "train_dataloader.batch_size=2"]
    both = f"""
import runpy
import sys
import tisynth
from tisynth.ldm.checkpoint import save_state_dict

model = tisynth.create_model({str(SMALL)!r}, classes={str(scenes / "classes.json")!r})
assert type(model).__module__ == "tisynth.cldm.control_ldm"
save_state_dict(model.state_dict(), "small.safetensors")
for words in {paint}, {learn}:
    sys.argv[1:] = words
    try:
        runpy.run_module("tisynth", run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, words
"""
    call("python", "-c", both)
    assert len(list((tmp_path / "out").glob("[!.]*.jpg"))) == 1
    assert (tmp_path / "segmentor" / "iter_2.pth").is_file()


def test_in_a_checkout_the_packages_are_the_same_modules():
    aliases = [importlib.import_module(f"tisynth.{name}") for name in ("cldm.build", "gss", "segmentation.dataset")]
    assert aliases == [importlib.import_module(name) for name in ("cldm.build", "gss", "segmentation.dataset")]
    assert all(module.__name__ == module.__spec__.name for module in aliases)
    from cldm.build import create_model

    assert tisynth.create_model is create_model and "sample" in dir(tisynth)
    with pytest.raises(AttributeError, match="nothing"):
        _ = tisynth.nothing
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tisynth.cldm.nothing")


def test_names_in_files_mean_the_same_in_both_places(monkeypatch):
    names = {"cldm.control.ControlNet": "cldm.control.ControlNet", "tisynth.gss": "gss", "mmseg.models": "mmseg.models"}
    assert {name: house.module_path(name) for name in names} == names
    monkeypatch.setattr(house, "PREFIX", "tisynth.")
    inside = {"gss": "tisynth.gss", "tisynth.gss": "tisynth.gss", "tisynth.x": "tisynth.x", "gssx.y": "gssx.y"}
    assert {name: house.module_path(name) for name in inside} == inside
    assert house.command_of("scripts.segmentor")[1:] == ["-m", "tisynth.scripts.segmentor"]


def test_each_script_is_a_command():
    assert {module for module, _ in COMMANDS.values()} == set(SCRIPTS) - {"predict"}


def test_modules_are_named_in_texts_by_one_function_alone():
    importers = {"import_module", "__import__", "run_module", "find_spec"}
    breaches = []
    for path in (path for package in house.HOUSE for path in (ROOT / package).rglob("*.py")):
        if path == ROOT / "common" / "house.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            named = getattr(node, "func", None)
            if getattr(named, "attr", getattr(named, "id", "")) in importers and not (
                isinstance(node.args[0], ast.Constant) and node.args[0].value.split(".")[0] not in house.HOUSE
            ):
                breaches.append((path.name, node.lineno))
            for words in [node.elts] if isinstance(node, ast.List | ast.Tuple) else []:
                texts = [word.value for word in words if isinstance(word, ast.Constant)]
                if "-m" in texts and any(isinstance(t, str) and t.split(".")[0] in house.HOUSE for t in texts):
                    breaches.append((path.name, node.lineno))
    assert breaches == []


def test_exact_versions_lie_in_the_packages_ranges():
    exact = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    pins = {wanted.name: str(wanted.specifier).removeprefix("==") for wanted in exact}
    ranges = {wanted.name: wanted for wanted in map(Requirement, PROJECT["dependencies"])}
    tools = {wanted.name: wanted for wanted in map(Requirement, PROJECT["optional-dependencies"]["dev"])}
    extra = {wanted.name: wanted for wanted in map(Requirement, PROJECT["optional-dependencies"]["geo"])}
    tested = {name: wanted for name, wanted in extra.items() if name in pins}  # an extra that the tests use
    assert set(ranges) == set(pins) - TOOLS - set(tested) and set(tools) == TOOLS
    assert [name for name, wanted in (ranges | tools | tested).items() if pins[name] not in wanted.specifier] == []
    conda = (ROOT / "environment.yml").read_text()
    assert "- -r requirements.txt" in conda
    python = re.search(r"- python=([\d.]+)", conda)
    assert python and Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python[1])


def test_the_version_is_one():
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_what_a_notebook_calls_is_there():
    assert set(tisynth.__all__) == set(tisynth._CALLS)
    assert all(callable(getattr(tisynth, name)) for name in tisynth.__all__)

"""Where this project's modules are: side by side in a checkout, inside the package ``tisynth`` where it is installed.

Files name our modules as in a checkout (``target: cldm.control.ControlNet``, ``custom_imports = ["segmentation"]``).
Whatever imports a module by its name in a text, or starts one as a process, asks here, so that such a file means the
same in both places. This file imports nothing of ours: setup.py reads it, too.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "tisynth"
HOUSE = ("common", "ldm", "cldm", "gss", "post_processing", "evaluation", "segmentation", "importing", "web", "scripts")
# "" in a checkout, "tisynth." where it is installed: what stands before every module's name
PREFIX = __name__.removesuffix("common.house") if __name__.endswith("common.house") else ""


def file_name(name: str) -> str:
    """A module's name as files have it, ``cldm.control``; ``tisynth.cldm.control`` is taken, too."""
    short = name.removeprefix(f"{PACKAGE}.")
    return short if short.split(".")[0] in HOUSE else name


def module_path(name: str) -> str:
    """What to import for a module's name in a file; names of other projects stay as they are."""
    name = file_name(name)
    return PREFIX + name if name.split(".")[0] in HOUSE else name


def load(name: str) -> ModuleType:
    """Imports a module by its name in a file."""
    return importlib.import_module(module_path(name))


def command_of(module: str) -> list[str]:
    """The start of a command line that runs a module (``scripts.train``) in a process, with ``environment()``."""
    return [sys.executable, "-m", module_path(module)]


def environment() -> dict[str, str]:
    """This process's variables, with the folder that our modules are found in on the child's path."""
    folder = Path(__file__).parents[2 if PREFIX else 1]
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths}

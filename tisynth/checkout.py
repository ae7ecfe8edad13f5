"""In a checkout: ``tisynth.ldm`` is the module ``ldm`` itself, found beside this folder.

Not a second copy of it: classes would exist twice, and mmseg refuses to register a name twice.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType


class Aliases(importlib.abc.MetaPathFinder):
    """Finds ``tisynth.ldm...`` as an alias, and ``ldm`` in the checkout, on the path or not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.house: Sequence[str] = runpy.run_path(str(root / "common" / "house.py"))["HOUSE"]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        first, _, rest = fullname.partition(".")
        if first in self.house and not rest:
            return importlib.machinery.PathFinder.find_spec(fullname, [str(self.root)])
        if first != "tisynth" or rest.split(".")[0] not in self.house:
            return None
        real = importlib.util.find_spec(rest)
        if real is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, _Alias(rest), origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec


class _Alias(importlib.abc.InspectLoader):
    """Gives the module of another name, as that name's own import made it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module itself."""
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run a second time; the import system has put the alias's spec in place of the module's own."""
        module.__spec__ = self.spec

    def get_code(self, fullname: str) -> CodeType | None:
        """What ``python -m tisynth.scripts.train`` runs."""
        loader = getattr(importlib.util.find_spec(self.name), "loader", None)
        return loader.get_code(self.name) if isinstance(loader, importlib.abc.InspectLoader) else None

    def get_source(self, fullname: str) -> str | None:
        """The real module's source."""
        loader = getattr(importlib.util.find_spec(self.name), "loader", None)
        return loader.get_source(self.name) if isinstance(loader, importlib.abc.InspectLoader) else None

"""Builds the package ``tisynth``; pyproject.toml says all else.

Here the packages lie side by side and are imported as ``ldm``, ``common``, ``scripts``. Names as general as these would
collide in other people's environments. So they are built into ``tisynth``: ``ldm/util.py`` becomes
``tisynth/ldm/util.py``, and import statements that name one of our packages get ``tisynth.`` in front. Modules named in
texts go through ``common.house``.
"""

from __future__ import annotations

import ast
import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
HOUSE: tuple[str, ...] = runpy.run_path(str(ROOT / "common" / "house.py"))["HOUSE"]
DATA = ("py.typed", "*.json", "*.yaml", "*.md")


def folders(top: str) -> list[str]:
    """A top-level folder, and those in it that hold files of the package: ``configs/gss/_base_``."""
    found = {path.parent.relative_to(ROOT).as_posix() for end in ("*.py", *DATA) for path in (ROOT / top).rglob(end)}
    return sorted(folder for folder in {top, *found} if "__pycache__" not in folder)


def with_package_name(source: str, file: str) -> str:
    """A module's source whose imports find our packages inside ``tisynth``.

    Args:
        source: Python.
        file: its name, for messages.

    Raises:
        ValueError: ``import ldm.util``, which binds the name ``ldm``; write ``from ldm import util``.
    """
    lines = source.encode().splitlines(keepends=True)  # AST columns count bytes
    places = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in HOUSE:
            places.append((node.lineno - 1, node.col_offset))
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] in HOUSE for alias in node.names):
            raise ValueError(f"{file}, line {node.lineno}: write `from PACKAGE import MODULE`")
    for line, column in places:
        before, statement = lines[line][:column], lines[line][column:]
        lines[line] = before + statement.replace(b"from ", b"from tisynth.", 1)
    return b"".join(lines).decode()


class BuildHouse(build_py):
    """Copies modules as setuptools does, then gives their imports the package's name; not those of configs."""

    def run(self) -> None:
        """Starts without what an earlier build left, so that removed modules do not come back."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "tisynth", ignore_errors=True)
        super().run()

    def build_module(self, module: str, module_file: str, package: str | list[str]) -> tuple[str, bool]:
        """See setuptools."""
        out, copied = super().build_module(module, module_file, package)
        if not self.editable_mode and not Path(module_file).is_relative_to("configs"):
            source = Path(module_file).read_text(encoding="utf-8")
            Path(out).write_text(with_package_name(source, module_file), encoding="utf-8")
        return out, copied


places = {f"tisynth.{folder.replace('/', '.')}": folder for top in (*HOUSE, "configs") for folder in folders(top)}
setup(
    packages=["tisynth", *places],
    package_dir={"tisynth": "tisynth", **places},
    package_data={"": list(DATA)},
    cmdclass={"build_py": BuildHouse},
)

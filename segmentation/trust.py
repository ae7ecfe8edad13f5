"""Which configs may run as what they are, Python, and which are read as plain data.

A config of this checkout, or one that you wrote, runs: mmseg's configs are Python. A folder of results may come from
anyone. A config that lies in one is taken as plain data only, which is what ``scripts/segmentor.py`` writes there:
values assigned to names, modules of this project or of OpenMMLab to import, and types that are registered with them.
Anything else needs ``--trust-config``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

from common import house
from common.errors import InputError
from common.files import inside
from common.schema import one_line, parse_json
from segmentation.trees import dictionaries

ROOT = Path(__file__).resolve().parent.parent
OWN = (ROOT / "configs", ROOT / "demo" / "mmseg")
PACKAGES = ("segmentation", "gss", "tests", "mmseg", "mmcv", "mmengine")  # what plain data may have imported
SCOPES = ("mmseg", "mmcv", "mmengine")
REMEDY = "read it, and say ‹trust_config› if you know where it comes from"

_RESULTS = ("*.pth", "*.ckpt", "*.pt", "*.safetensors", "last_checkpoint", "metrics*.json")
_PLAIN = (
    ast.Module,
    ast.Assign,
    ast.Expr,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Store,
    ast.List,
    ast.Tuple,
    ast.Dict,
    ast.Set,
    ast.Call,
    ast.keyword,
    ast.UnaryOp,
    ast.USub,
    ast.UAdd,
)


def of_results(path: Path) -> bool:
    """Whether a config lies in a folder of results: weights or metrics are in it, beside it or one folder below."""
    path = path.resolve()
    if any(inside(path, folder) for folder in OWN):
        return False
    folders = [path.parent, *(entry for entry in path.parent.iterdir() if entry.is_dir())]
    return any(True for folder in folders if _readable(folder) for pattern in _RESULTS for _ in folder.glob(pattern))


def _readable(folder: Path) -> bool:
    try:
        next(folder.iterdir(), None)
    except OSError:
        return False
    return True


def check_plain(path: Path, depth: int = 0) -> None:
    """Refuses a config, or one that it builds on, which is more than values assigned to names.

    Raises:
        InputError: names the file and the line.
    """
    if path.suffix == ".json":
        bases = _json_bases(path)
    else:
        tree = _parse(path)
        names = {_target(node) for node in tree.body if isinstance(node, ast.Assign)} | {"dict"}
        for node in ast.walk(tree):
            if not _is_plain(node) or (isinstance(node, ast.Name) and node.id not in names):
                raise InputError(
                    f"{path}, line {getattr(node, 'lineno', 1)}: a config in a folder of results must be "
                    f"values only, as scripts/segmentor.py writes it, not code; {REMEDY}"
                )
        bases = [
            base
            for node in tree.body
            if isinstance(node, ast.Assign) and _target(node) == "_base_"
            for base in _strings(node.value)
        ]
    for base in bases:
        file = path.parent / base
        if "::" in base or any(inside(file, folder) for folder in OWN) or not file.is_file():
            continue  # an installed package's or this checkout's is trusted; a missing one mmengine reports
        if depth == 10:
            raise InputError(f"{path}: field _base_: more than {depth} files build on one another; write fewer")
        check_plain(file, depth + 1)


def _parse(path: Path) -> ast.Module:
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read as a config ({one_line(error)})") from error
    if "{{" in text:  # mmengine would write paths and environment variables there before it parses
        raise InputError(f"{path}: a config in a folder of results has no {{{{ }}}} to fill in; {REMEDY}")
    return tree


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):  # dict(a=1), as mmengine writes its dictionaries
        return isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)  # the description
    if isinstance(node, ast.Assign):
        return len(node.targets) == 1 and _target(node) not in (None, "dict")
    return isinstance(node, _PLAIN)


def _target(node: ast.Assign) -> str | None:
    return node.targets[0].id if isinstance(node.targets[0], ast.Name) else None


def _strings(node: ast.AST) -> Iterator[str]:
    return (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))


def _json_bases(path: Path) -> list[str]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as a config ({one_line(error)})") from error
    bases = content.get("_base_", []) if isinstance(content, dict) else []
    return [base for base in (bases if isinstance(bases, list) else [bases]) if isinstance(base, str)]


def check_imports(path: str, custom_imports: Any) -> None:
    """Refuses plain data that has modules imported beyond this project's and OpenMMLab's.

    Raises:
        InputError: names the module.
    """
    if custom_imports is None:
        return
    names = custom_imports.get("imports", []) if isinstance(custom_imports, dict) else [custom_imports]
    for name in [names] if isinstance(names, str) else list(names or []):
        if not isinstance(name, str) or house.file_name(name).split(".")[0] not in PACKAGES:
            raise InputError(f"{path}, field custom_imports: {one_line(name, 60)} would be run; {REMEDY}")


def check_types(path: str, tree: Any) -> None:
    """Refuses plain data whose ``type`` names anything but a registered class: mmengine would import and call it.

    Raises:
        InputError: names the type.
    """
    known = {name for registry in _registries() for name in registry.module_dict}
    for node in dictionaries(tree):
        for key in ("type", "_scope_", "default_scope"):
            value = node.get(key)
            if value is None:
                continue
            scope, _, name = value.rpartition(".") if isinstance(value, str) else ("?", "", "")
            fine = value in SCOPES if key != "type" else name in known and scope in ("", *SCOPES)
            if not fine:
                raise InputError(
                    f"{path}, field {key}: {one_line(value, 80)} is not registered with mmseg or this project; {REMEDY}"
                )
        if "pickle" in (node.get("decode_backend"), node.get("file_format")):
            raise InputError(f"{path}: reads pickles, which run code; {REMEDY}")


def _registries() -> Iterator[Registry]:
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    while roots:
        registry = roots.pop()
        registry.import_from_location()
        yield registry
        roots += registry.children.values()

"""YAML from people we do not know: plain values alone, of a size that a person writes, each key once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError
from common.schema import one_line

MAX_BYTES = 1 << 17
MAX_VALUES = 20_000  # aliases counted as often as they are used
MAX_DEPTH = 40
_TAGS = ("map", "seq", "str", "int", "float", "bool", "null", "merge")
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in _TAGS)
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without dates and numbers to the base of 60; ``1e-4`` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in rules if tag.split(":")[-1] not in ("timestamp", "int", "float")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))


def read_yaml(path: Path) -> Any:
    """What a YAML file (UTF-8, with or without byte-order mark) holds: dicts, lists, texts, numbers, booleans, None.

    Raises:
        InputError: not readable, or see ``parse_yaml``; names the file, and the line where there is one.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES >> 10} KiB; no configuration is")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not in UTF-8 (byte {error.start}); save it in that encoding") from error
    except (OSError, ValueError) as error:  # a name with a NUL byte is a ValueError
        if isinstance(error, InputError):
            raise
        reason = one_line(getattr(error, "strerror", None) or error)
        raise InputError(f"{one_line(path)}: cannot read this file ({reason})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """YAML's plain values.

    Args:
        text: one document.
        where: where it stands, for messages.

    Raises:
        InputError: no YAML; a key twice; a tag that makes objects; aliases that contain themselves or grow beyond
            ``MAX_VALUES``; deeper than ``MAX_DEPTH``.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, where, {}, 1)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: cannot be read as YAML ({one_line(error)})") from error
    except RecursionError as error:
        raise InputError(f"{where}: values nested too deeply") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # such as !!int x, !!bool x
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: a value is not what its tag says ({one_line(error)})") from error


def _count(node: yaml.Node, where: str, known: dict[int, int | None], depth: int) -> int:
    """Values below a node, those of an alias as often as it is used; refuses what ``parse_yaml`` says."""
    line = f"{where}, line {node.start_mark.line + 1}"
    if depth > MAX_DEPTH:
        raise InputError(f"{line}: values nested more than {MAX_DEPTH} deep")
    if node.tag not in _PLAIN:
        raise InputError(f"{line}: tag {one_line(node.tag, 60)} is not taken; write plain values")
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise InputError(f"{line}: an alias (*name) within its own anchor (&name): it would contain itself")
        return count
    known[id(node)] = None
    total = 1
    if isinstance(node, yaml.ScalarNode) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in node.value):
        raise InputError(f"{line}: a text with a NUL character or half of a surrogate pair")
    if isinstance(node, yaml.ScalarNode) and node.tag.split(":")[-1] in ("int", "float") and len(node.value) > 400:
        raise InputError(f"{line}: a number of {len(node.value)} digits")
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            at = f"{where}, line {key.start_mark.line + 1}"
            if name is None or key.tag.split(":")[-1] not in ("str", "merge"):
                raise InputError(f"{at}: {one_line(name, 60) if name else 'a list or mapping'} is no name for a value")
            if name in keys:
                raise InputError(f"{at}: {one_line(name, 60)} stands there twice; keep one")
            keys.add(name)
            total += _count(value, where, known, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(value, where, known, depth + 1) for value in node.value)
    if total > MAX_VALUES:
        raise InputError(f"{line}: more than {MAX_VALUES} values, aliases counted; no configuration has so many")
    known[id(node)] = total
    return total

"""Values from files checked against a schema: what is wrong is said in one line that names file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import InputError


class Schema(BaseModel):
    """Base of all schemas: unknown fields are refused, no text becomes a number, numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class OpenSchema(Schema):
    """A schema of a file that newer versions may add fields to: unknown ones are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


S = TypeVar("S", bound=BaseModel)
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]


def one_line(text: object, limit: int = 200) -> str:
    """Any text in one printable line of at most ``limit`` characters; what a terminal would obey is escaped."""
    words = " ".join(str(text).split())
    words = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in words)
    return words if len(words) <= limit else words[: limit - 3] + "..."


KeyPath = tuple[str | int, ...]
"""Keys and indices on the way to a value."""


def dotted(key_path: KeyPath) -> str:
    """A place as people write it, e.g. ``data.params.batch_size``."""
    return one_line(".".join(map(str, key_path)), 120)


def parse(
    content: Any, schema: type[S], where: str | Callable[[KeyPath], str], remedy: str = "", under: KeyPath = ()
) -> S:
    """``content`` as a ``schema``.

    Args:
        content: what JSON or YAML gave.
        schema: what it must be.
        where: file (and line) it came from; or a function that knows it for each key_path.
        remedy: what to do, appended to the message.
        under: key_path of ``content`` in what ``where`` names.

    Raises:
        InputError: it is not; names ``where``, the first wrong field, its value and the reason.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        faults: dict[KeyPath, list[Any]] = {}
        for fault in error.errors(include_url=False, include_context=False):
            faults.setdefault(_key_path(content, fault), []).append(fault)
        key_path, first = next(iter(faults.items()))
        silent = first[0]["type"] in ("missing", "value_error", "extra_forbidden")  # our validators say the value
        value = "" if silent else f" {_shown(first[0]['input'])}"
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        # the members of a union each have their say
        reasons = dict.fromkeys(_SAID.get(fault["type"], fault["msg"].removeprefix("Value error, ")) for fault in first)
        reason = one_line("; or ".join(text[:1].lower() + text[1:] for text in reasons))
        key_path = under + key_path
        source = where if isinstance(where, str) else where(key_path)
        source = f"{source}, field {dotted(key_path)}" if key_path else source
        raise InputError(f"{source}:{value} {reason}{more}{f'; {remedy}' if remedy else ''}") from error


_SAID = {"extra_forbidden": "is no field that is known here"}


def _key_path(content: Any, fault: Any) -> KeyPath:
    """Where a fault is: pydantic's place without the names of a union's members, which it appends."""
    key_path: list[str | int] = []
    for key in fault["loc"]:
        inside = isinstance(content, list) and isinstance(key, int) and 0 <= key < len(content)
        if inside or (isinstance(content, dict) and key in content):
            content = content[key]
        elif fault["type"] == "missing" and isinstance(content, dict):
            return (*key_path, key)
        else:
            break
        key_path.append(key)
    return tuple(key_path)


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), 60)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list within itself
        return f"a {type(value).__name__}"


def read_json(path: Path, schema: type[S], remedy: str = "") -> S:
    """Reads a JSON file; see ``parse``.

    Raises:
        InputError: unreadable, no JSON, or not what ``schema`` says.
    """
    return parse(load_json(path, remedy), schema, str(path), remedy)


def load_json(path: Path, remedy: str = "") -> Any:
    """What a JSON file (UTF-8, with or without byte-order mark) holds.

    Raises:
        InputError: unreadable or no JSON; ``remedy`` says what to do.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(getattr(error, "strerror", None) or error)
        raise InputError(f"{path}: no readable JSON ({reason}){f'; {remedy}' if remedy else ''}") from error


def parse_json(text: str) -> Any:
    """JSON as the standard has it: no NaN or Infinity, no field twice.

    Raises:
        ValueError: it is not; deep nesting is a ``RecursionError``.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number in JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"field {next(name for name in names if names.count(name) > 1)} stands there twice")
        return fields

    return json.loads(text, parse_constant=constant, object_pairs_hook=unique)

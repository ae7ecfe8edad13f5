"""Values from files checked against a schema: what is wrong is said in one line that names file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import InputError


class Schema(BaseModel):
    """Base of all schemas: unknown fields are refused, no text becomes a number, numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class OpenSchema(Schema):
    """A schema of a file that newer versions may add fields to: unknown ones are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


S = TypeVar("S", bound=BaseModel)


def one_line(text: object, limit: int = 200) -> str:
    """Any text in one printable line of at most ``limit`` characters; what a terminal would obey is escaped."""
    words = " ".join(str(text).split())
    words = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in words)
    return words if len(words) <= limit else words[: limit - 3] + "..."


def parse(content: Any, schema: type[S], where: str, remedy: str = "") -> S:
    """``content`` as a ``schema``.

    Args:
        content: what JSON or YAML gave.
        schema: what it must be.
        where: file (and line) it came from.
        remedy: what to do, appended to the message.

    Raises:
        InputError: it is not; names ``where``, the first wrong field, its value and the reason.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        value = "" if first["type"] == "missing" else f" {one_line(repr(first['input']), 60)}"
        more = f" (and {error.error_count() - 1} more faults)" if error.error_count() > 1 else ""
        reason = one_line(first["msg"][:1].lower() + first["msg"][1:])
        place = f"{where}, field {one_line(field, 80)}" if field else where
        raise InputError(f"{place}:{value} {reason}{more}{f'; {remedy}' if remedy else ''}") from error


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

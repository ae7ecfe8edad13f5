"""Options declared once: a dataclass in the package that does the work, from which its command line is made.

    @dataclass(frozen=True, kw_only=True)
    class FilterOptions(Options):
        margin: float = option(1.25, help="times a class's mean loss", convert=number(0))

``read_options(FilterOptions, __doc__)`` is the command ``--margin 1.5``; ``FilterOptions(margin=1.5)`` is the call.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.converters import flag, text
from common.errors import InputError

T = TypeVar("T", bound="Options")
_KEY = "option"


@dataclass(frozen=True)
class Option:
    """How a field is written on the command line; see ``option``."""

    help: str
    convert: Callable[[str], Any] | None = None
    names: tuple[str, ...] = ()
    choices: tuple[Any, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: str | int | None = None
    repeated: bool = False
    const: Any = None
    positional: bool = False
    group: str | None = None


def option(default: Any = dataclasses.MISSING, *, help: str, **how: Any) -> Any:
    """A field of a dataclass of options.

    Args:
        default: its value where nothing is given; without one, it must be given.
        help: what it means, with its unit. ``argparse.SUPPRESS`` hides it.
        **how: ``convert`` (a word to a value, see ``common.converters``), ``names`` (what is typed, ``--field-name`` by
            default; the first is the documented one), ``choices``, ``metavar``, ``nargs``, ``const``, ``positional``,
            ``repeated`` (what is given a second time is added to the first), ``group`` (a heading of the help).
    """
    metadata = {_KEY: Option(help, **how)}
    if isinstance(default, list | dict | set):
        raise TypeError("a default that can change: write a tuple")
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options: what is built from Python is held to the bounds that the command line has.

    Paths may be given as texts.

    Raises:
        InputError: a value outside of its field's bounds or choices; names the field.
    """

    def __post_init__(self) -> None:
        for field, how, kind in _fields(type(self)):
            value = getattr(self, field.name)
            if value is None or value == field.default:
                continue
            if kind is Path and isinstance(value, str):
                object.__setattr__(self, field.name, Path(value))
            elif how.choices is not None:
                for one in value if isinstance(value, tuple | list) else (value,):
                    if one not in how.choices:
                        told = ", ".join(map(str, how.choices))
                        raise InputError(f"‹{field.name}› {one}: choose one of {told}")
            elif kind in (int, float) and how.convert is not None and isinstance(value, int | float):
                try:
                    how.convert(str(value))
                except argparse.ArgumentTypeError as error:
                    raise InputError(f"‹{field.name}› {error}") from error


def _fields(options: type[Options]) -> list[tuple[dataclasses.Field[Any], Option, Any]]:
    """Fields that are options, with what they say and the type of their values (of one, where there are several)."""
    hints = typing.get_type_hints(options)
    found = []
    for field in dataclasses.fields(options):
        if _KEY in field.metadata:
            kind = hints[field.name]
            if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
                kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
            found.append((field, field.metadata[_KEY], kind))
    return found


def flag_of(options: type[Options], name: str) -> str | None:
    """How a field is typed; None if it is no field of these options."""
    for field, how, _ in _fields(options):
        if field.name == name:
            return str(how.metavar or name) if how.positional else how.names[0] if how.names else _long(name)
    return None


def _long(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Adds every field of ``options`` to a parser; what it has already, of a shared base, stays as it is."""
    groups: dict[str, Any] = {}
    present = {action.dest for action in parser._actions}
    for field, how, kind in _fields(options):
        if field.name in present:
            continue
        target: Any = parser
        if how.group is not None:
            if how.group not in groups:
                groups[how.group] = parser.add_argument_group(how.group)
            target = groups[how.group]
        required = field.default is dataclasses.MISSING
        settings: dict[str, Any] = {"help": how.help}
        if kind is bool and how.nargs is None and how.convert is None:
            if field.default is not False:
                raise TypeError(f"{options.__name__}.{field.name}: a switch is off by default; name its opposite")
            settings["action"] = "store_true"
        else:
            several = typing.get_origin(kind) in (tuple, list, Sequence)
            of_one = typing.get_args(kind)[0] if several else kind
            settings |= {"nargs": how.nargs or ("+" if several else None), "metavar": how.metavar}
            if how.choices is not None:
                settings |= {"choices": how.choices, "type": how.convert or (text if of_one is str else of_one)}
            else:
                settings["type"] = how.convert or {str: text, Path: Path, bool: flag}[of_one]
            if how.const is not None:
                settings["const"] = how.const
            if not required:
                settings["default"] = field.default
            if how.repeated:
                settings |= {
                    "action": "extend",
                    "default": [] if field.default is dataclasses.MISSING else list(field.default),
                }
        if how.positional:
            target.add_argument(field.name, **settings)
        else:
            if required:
                settings["required"] = True
            target.add_argument(*(how.names or (_long(field.name),)), dest=field.name, **settings)


def from_namespace(options: type[T], namespace: argparse.Namespace) -> T:
    """The options that were parsed; lists become tuples.

    Raises:
        InputError: options that contradict each other.
    """
    values = {}
    for field, _, _ in _fields(options):
        value = getattr(namespace, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


def recorded(options: Options) -> dict[str, Any]:
    """The options by field, as reports keep them: paths as texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: plain(getattr(options, field.name)) for field, _, _ in _fields(type(options))}


def words(options: Options) -> list[str]:
    """A command line that ``read_options`` makes the same options of: what differs from the defaults.

    For work that is done in a process of its own.
    """
    positional, given = [], []
    for field, how, kind in _fields(type(options)):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        flag = how.names[0] if how.names else _long(field.name)
        if isinstance(value, Mapping):
            value = tuple(f"{key}={one}" for key, one in value.items())
        several = [_word(one) for one in (value if isinstance(value, tuple | list) else (value,))]
        if how.positional:
            positional += several
        elif kind is bool and how.nargs is None and how.convert is None:
            given.append(flag)
        elif isinstance(value, tuple | list):
            given += [flag, *several]
        else:
            given.append(f"{flag}={several[0]}")
    return [*given, "--", *positional] if any(word.startswith("-") for word in positional) else [*positional, *given]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)

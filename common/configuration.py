"""Configurations before their meaning: YAML files and ``key=value`` settings, merged, with the source of each value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from common.errors import InputError
from common.schema import KeyPath, dotted, one_line
from common.yaml_files import MAX_DEPTH, MAX_VALUES, parse_yaml, read_yaml

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_MAX_TEXT = 10_000  # characters of a value


@dataclass
class Configuration:
    """Plain values, and where they come from.

    Attributes:
        values: dicts, lists, texts, numbers, truth values, None.
        sources: the file or setting of each key_path.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[KeyPath, str] = field(default_factory=dict)

    def source(self, key_path: KeyPath) -> str:
        """The file or setting that a place's value comes from, or that its nearest mapping was last changed by."""
        for length in range(len(key_path), -1, -1):
            if key_path[:length] in self.sources:
                return self.sources[key_path[:length]]
        return "configuration"

    def merge(self, values: Any, source: str, key_path: KeyPath = ()) -> None:
        """Merges values into those at a place: mappings key by key, all else replaces what was there."""
        parent: Any = self.values
        for key in key_path[:-1]:
            parent = parent[key]
        before = parent[key_path[-1]] if key_path else self.values
        self.sources[key_path] = source
        if isinstance(values, dict) and isinstance(before, dict):
            for key, value in values.items():
                before.setdefault(key, None)
                self.merge(value, source, (*key_path, key))
            return
        if isinstance(before, dict | list):
            for known in [known for known in self.sources if known[: len(key_path)] == key_path and known != key_path]:
                del self.sources[known]
        if isinstance(values, dict):
            parent[key_path[-1]] = {}
            self.merge(values, source, key_path)
        else:
            parent[key_path[-1]] = plain(values)  # a copy: YAML's aliases share what they name

    def set(self, setting: str) -> None:
        """Merges a setting ``a.b.0=value``; the value is read as YAML.

        Raises:
            InputError: not understood, or no such key_path in a list.
        """
        name, _, text = setting.partition("=")
        source = f"{one_line(setting, 80)} (command line)"
        keys = re.sub(r"\[(\d{1,6})\]", r".\1", name).split(".")
        if not all(keys) or len(keys) > MAX_DEPTH or not name.isprintable():
            raise InputError(f"{source}: not understood; settings are written key=value, options with --")
        value = parse_yaml(text, source)
        here: Any = self.values
        key_path: KeyPath = ()
        for i, word in enumerate(keys):
            key: str | int = word
            if isinstance(here, list):
                if not word.isdecimal() or int(word) >= len(here):
                    raise InputError(f"{source}: {dotted(key_path)} is a list of {len(here)}: name one by its number")
                key = int(word)
            key_path = (*key_path, key)
            if i == len(keys) - 1:
                if isinstance(here, dict):
                    here.setdefault(key, None)
                self.merge(value, source, key_path)
                return
            if isinstance(here, dict) and not isinstance(here.get(key), dict | list):
                here[key] = {}
                self.sources[key_path] = source
            here = here[key]

    def resolved(self) -> Configuration:
        """A copy in which references such as ``${model.params.channels}`` are what they name.

        Raises:
            InputError: a reference to nothing, to itself, or to what is outside the configuration (the environment, a
                resolver); or more values than a person writes.
        """
        values = _Resolver(self).value(self.values, ())
        return Configuration(values, self.sources)


class _Resolver:
    def __init__(self, configuration: Configuration) -> None:
        self.of = configuration
        self.count = 0
        self.active: set[str] = set()

    def fail(self, key_path: KeyPath, what: str) -> InputError:
        return InputError(f"{self.of.source(key_path)}, field {dotted(key_path)}: {what}")

    def value(self, value: Any, key_path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_VALUES or len(key_path) > MAX_DEPTH:
            raise self.fail(key_path, f"more than {MAX_VALUES} values, or nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {key: self.value(inner, (*key_path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner, (*key_path, i)) for i, inner in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self.text(value, key_path)
        return value

    def text(self, text: str, key_path: KeyPath) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole:
            return self.named(whole[1], key_path)

        def one(match: re.Match[str]) -> str:
            found = self.named(match[1], key_path)
            if isinstance(found, dict | list):
                raise self.fail(key_path, f"{one_line(match[0], 60)} is no single value, and cannot be part of a text")
            return str(found)

        made = _REFERENCE.sub(one, text)
        if "${" in made or len(made) > _MAX_TEXT:
            raise self.fail(key_path, f"{one_line(text, 60)}: not understood; a reference is written ${{a.b.c}}")
        return made

    def named(self, name: str, key_path: KeyPath) -> Any:
        shown = one_line(f"${{{name}}}", 60)
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise self.fail(
                key_path,
                f"{shown}: only values of this configuration can be named, ${{a.b.c}}; "
                "nothing is read from the environment",
            )
        if name in self.active or len(self.active) > MAX_DEPTH:
            raise self.fail(key_path, f"{shown} leads back to itself")
        found: Any = self.of.values
        for word in name.split("."):
            try:
                found = found[int(word)] if isinstance(found, list) else found[word]
            except (KeyError, IndexError, ValueError, TypeError):
                raise self.fail(key_path, f"{shown}: there is no such value") from None
        self.active.add(name)
        try:
            return self.value(found, key_path)
        finally:
            self.active.discard(name)


def plain(value: Any) -> Any:
    """OmegaConf's containers, tuples and paths as plain values; references stay as they are written."""
    if isinstance(value, DictConfig | ListConfig):
        return plain(OmegaConf.to_container(value, resolve=False))
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def read_configuration(files: Sequence[str | Path | DictConfig], settings: Sequence[str] = ()) -> Configuration:
    """Merges files, later ones over earlier ones, then settings; references are resolved.

    Args:
        files: YAML files, or configurations that were read before.
        settings: ``key=value`` texts.

    Raises:
        InputError: one that cannot be read or is no mapping; names it.
    """
    merged = Configuration()
    for file in files:
        given = isinstance(file, DictConfig)
        values, source = (plain(file), "configuration") if given else (read_yaml(Path(file)), str(file))
        if not isinstance(values, dict):
            raise InputError(f"{source}: not a YAML mapping")
        merged.merge(values, source)
    for setting in settings:
        merged.set(setting)
    return merged.resolved()

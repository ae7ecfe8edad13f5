"""Settings that replace a config's own (``cfg_options``), each checked against what the config has."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction

from common.errors import InputError
from common.schema import one_line

READ = frozenset(
    (
        "model",
        "data_preprocessor",
        "work_dir",
        "default_scope",
        "log_level",
        "log_processor",
        "visualizer",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "train_cfg",
        "val_cfg",
        "test_cfg",
        "val_evaluator",
        "test_evaluator",
        "auto_scale_lr",
        "optim_wrapper",
        "param_scheduler",
        "default_hooks",
        "custom_hooks",
        "env_cfg",
        "randomness",
        "experiment_name",
        "find_unused_parameters",
        "sync_bn",
        "compile",
        "model_wrapper_cfg",
        "activation_checkpointing",
        "efficient_conv_bn_eval",
        "test_pipeline",
        "tta_model",
        "tta_pipeline",
    )
)
"""What is read of a config; any other name in it is a variable, which only its own lines read."""


def parse_settings(given: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys, from words such as ``train_cfg.max_iters=10``, with values as mmengine reads them.

    Raises:
        InputError: a word that is no setting.
    """
    if isinstance(given, Mapping):
        return dict(given)
    settings = {}
    for word in given:
        where = f"‹cfg_options› {one_line(word, 80)}"
        if "=" not in word.lstrip("="):
            raise InputError(f"{where}: settings are written key=value")
        key, value = word.split("=", 1)
        if not all(part.isdigit() or (part.isidentifier() and part[0] != "_") for part in key.split(".")):
            raise InputError(f"{where}: a key is written as names with dots, such as train_cfg.max_iters")
        if len(value) > 10_000 or not value.isprintable():
            raise InputError(f"{where}: the value is too long, or holds characters that do not print")
        try:
            settings[key] = DictAction._parse_iterable(value)
        except (AssertionError, ValueError, RecursionError) as error:
            raise InputError(f"{where}: {one_line(error)}") from error
        if not _finite(settings[key]):
            raise InputError(f"{where}: write a finite number, up to 2**63")
    return settings


def _finite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return abs(value) < 2**63 if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)


def apply_settings(config: Config, settings: Mapping[str, Any]) -> None:
    """Sets values of a config in place, ``{"train_cfg.max_iters": 10}``.

    Raises:
        InputError: a key that nothing would read; a text for a number, and the like.
    """
    for key, value in settings.items():
        _check(config, key, value)
        _assign(config._cfg_dict, key.split("."), value)


def _check(config: Config, key: str, value: Any) -> None:
    where = f"‹cfg_options› {one_line(key, 80)}"
    first, *rest = key.split(".")
    if first not in READ:
        raise InputError(
            f"{where}: the config's {first} is read by nothing{_similar(first, READ)}; name the place "
            "where the value is used, such as train_dataloader.batch_size"
        )
    node, name = config._cfg_dict, first
    for deeper in rest:
        parent, node = node, _child(node, name, where)
        if node is None:  # a new group of settings: the class that gets it will refuse what it does not know
            if similar := _similar(name, parent, 0.75):
                raise InputError(f"{where}: the config has no {name} there{similar}")
            return
        if not isinstance(node, (dict, list, tuple)):
            raise InputError(f"{where}: {name} is {one_line(repr(node), 60)}, nothing that has fields")
        name = deeper
    if isinstance(node, dict) and name not in node and "type" not in node and (similar := _similar(name, node, 0.75)):
        raise InputError(f"{where}: the config has no {name} there{similar}")
    old = _child(node, name, where)
    given = one_line(repr(value), 60)
    if isinstance(old, dict) and value is not None:
        raise InputError(
            f"{where}: is a group of settings, not {given}; set one of {one_line(', '.join(map(str, old)) or 'it')}"
        )
    if isinstance(old, bool) and not isinstance(value, (bool, type(None))):
        raise InputError(f"{where}: {given} is neither True nor False")
    if isinstance(old, (int, float)) and isinstance(value, (str, bool)) and not isinstance(old, bool):
        raise InputError(f"{where}: {given} is no number; the config has {old}")


def _assign(node: Any, names: list[str], value: Any) -> Any:
    """``node`` with another value at a place; groups that are not there are made."""
    if not names:
        return value
    first, *rest = names
    if isinstance(node, (list, tuple)):
        items = list(node)
        items[int(first)] = _assign(items[int(first)], rest, value)
        return type(node)(items)
    node = node if isinstance(node, dict) else ConfigDict()
    node[first] = _assign(node.get(first), rest, value)
    return node


def _child(node: Any, name: str, where: str) -> Any:
    if isinstance(node, dict):
        return node.get(name)
    if not name.isdigit() or int(name) >= len(node):
        raise InputError(f"{where}: {name} is no place of a list of {len(node)}; count from 0")
    return node[int(name)]


def _similar(name: str, names: Any, at_least: float = 0.6) -> str:
    close = difflib.get_close_matches(name, map(str, names), 1, at_least)
    return f" (did you mean {close[0]}?)" if close else ""

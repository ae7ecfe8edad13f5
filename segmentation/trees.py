"""Search in a config, which is a tree of dictionaries and lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def dictionaries(tree: Any) -> Iterator[Any]:
    """All dictionaries in a part of a config, outer ones first."""
    if isinstance(tree, Mapping):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for value in tree:
            yield from dictionaries(value)


def entries(tree: Any, kind: str) -> Iterator[Any]:
    """Those whose ``type`` is ``kind``."""
    return (node for node in dictionaries(tree) if node.get("type") == kind)


def with_pipeline(tree: Any) -> list[Any]:
    """The outermost dictionaries that have a ``pipeline``: the data sets of a loader."""
    if isinstance(tree, dict):
        return [tree] if "pipeline" in tree else [found for part in tree.values() for found in with_pipeline(part)]
    return [found for part in tree for found in with_pipeline(part)] if isinstance(tree, (list, tuple)) else []

"""Class tables as mmseg's meta information."""

from __future__ import annotations

from typing import Any

from common.classes import load_class_table
from common.errors import InputError


def class_table(name_or_path: str) -> dict[str, Any]:
    """A table as mmseg's meta information.

    Args:
        name_or_path: see ``common.classes.load_class_table``.

    Returns:
        ``classes``: names, ``palette``: [R, G, B] each, 0..255.

    Raises:
        InputError: no such table, or one that mmseg's heads cannot use.
    """
    table = load_class_table(name_or_path)
    if table.ignore_index != 255:
        raise InputError(f"classes {name_or_path}: ignore_index: {table.ignore_index}; segmentors here ignore 255")
    return {"classes": list(table.names), "palette": table.palette.tolist()}

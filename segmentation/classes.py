"""Class tables as mmseg's meta information."""

from __future__ import annotations

from typing import Any

from common.classes import load_class_table


def class_table(name_or_path: str) -> dict[str, Any]:
    """A table as mmseg's meta information.

    Args:
        name_or_path: see ``common.classes.load_class_table``.

    Returns:
        ``classes``: names, ``palette``: [R, G, B] each, 0..255.

    Raises:
        InputError: no such table.
    """
    table = load_class_table(name_or_path)
    return {"classes": list(table.names), "palette": table.palette.tolist()}

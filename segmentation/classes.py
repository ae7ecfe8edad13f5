"""Class tables as mmseg's meta information."""

from __future__ import annotations

from typing import Any

from common.classes import load_class_table


def class_table(name_or_path: str) -> dict[str, Any]:
    """A table's ``classes`` (names) and ``palette`` (RGB), as mmseg's meta information; see ``load_class_table``."""
    table = load_class_table(name_or_path)
    return {"classes": list(table.names), "palette": table.palette.tolist()}

"""Class tables: JSON files with ``classes``, ``palette`` and ``ignore_index``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segmentation import SegmentationError

TABLES = {path.stem.lower(): path for path in Path(__file__).parents[1].glob("ldm/data/class_tables/*.json")}


def class_table(name_or_path: str) -> dict[str, Any]:
    """A table as mmseg's meta information.

    Args:
        name_or_path: a built-in table (FUSU, GID, LoveDA, MBRSC; upper or lower case) or a path to a ``classes.json``.

    Returns:
        ``classes``: names, ``palette``: [R, G, B] each, 0..255.

    Raises:
        SegmentationError: no such table, or one that mmseg's heads cannot use.
    """
    path = TABLES.get(str(name_or_path).lower(), Path(name_or_path))
    if not path.is_file():
        known = ", ".join(sorted(table.stem for table in TABLES.values()))
        raise SegmentationError(f"classes: {name_or_path}: neither a file nor a built-in table ({known})")
    try:
        table = json.loads(path.read_text())
        names, palette = [str(name) for name in table["classes"]], table.get("palette") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SegmentationError(f'{path}: not a class table (needs "classes": [names]): {error}') from error
    if palette and len(palette) != len(names):
        raise SegmentationError(f"{path}: palette: {len(palette)} colours for {len(names)} classes")
    if table.get("ignore_index", 255) != 255:
        raise SegmentationError(f"{path}: ignore_index: {table['ignore_index']}; segmentors here ignore 255")
    return {"classes": names, "palette": palette}

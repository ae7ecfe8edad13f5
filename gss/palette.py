"""Palettes: N class colors of a maskige and, last, one for ignored pixels; read from files, names or triples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.classes import MAX_BYTES, built_in_tables, farthest_colors, labels_of, load_class_table, split_variant
from common.errors import InputError
from common.images import IGNORE, Labels
from common.schema import load_json, one_line

PALETTE_FOLDER = Path(__file__).parent / "palettes"


def check_colors(colors: Any, name: str) -> NDArray[Any]:
    """Checks class colors and returns them.

    Args:
        colors: M triples of integers, 0..255.
        name: what to call them in a message.

    Returns:
        int64 array (M, 3).

    Raises:
        InputError: not M >= 2 triples, not integers in 0..255, or two of them equal.
    """
    try:
        array = np.asarray(colors)
        if array.dtype.kind not in "iuf":  # texts, truth values, whole numbers beyond 64 bits
            raise ValueError("no numbers")
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: colors must be [red, green, blue] triples of integers in 0..255") from error
    if array.ndim != 2 or array.shape[1] != 3 or len(array) < 2:
        raise InputError(f"{name}: needs at least 2 [red, green, blue] triples, has an array of shape {array.shape}")
    bad = np.flatnonzero(((array < 0) | (array > 255) | (array != array.round())).any(1))
    if len(bad):
        raise InputError(f"{name}: entry {bad[0]} is {one_line(colors[bad[0]], 60)}; give integers in 0..255")
    unique, counts = np.unique(array, axis=0, return_counts=True)
    if (counts > 1).any():
        twin = unique[counts > 1][0]
        entries = np.flatnonzero((array == twin).all(1))
        raise InputError(
            f"{name}: entries {entries[0]} and {entries[1]} are both {twin.astype(int).tolist()}; give each its own"
        )
    return array.astype(np.int64)


def farthest_color(colors: NDArray[Any]) -> NDArray[Any]:
    """The color of a 17-step grid of the RGB cube that is farthest from all given ones, as an int64 triple."""
    return farthest_colors(colors, 1, np.linspace(0, 255, 18).round().astype(np.int64))[0]


def read_palette_file(path: Path) -> dict[str, Any]:
    """Reads a palette file: a class table (``classes``, ``palette``) with, optionally, ``ignore_color``.

    Raises:
        InputError: no such file, not JSON, no field ``palette``, or other numbers of classes and colors.
    """
    shown = one_line(path, 1000)
    try:
        size = path.stat().st_size if path.is_file() else -1
    except (OSError, ValueError):  # a NUL byte, a name too long
        size = -1
    if size < 0:
        known = ", ".join(sorted(p.stem for p in PALETTE_FOLDER.glob("*.json")))
        raise InputError(f"palette {shown}: no such file; give a JSON file or one of: {known}")
    if size > MAX_BYTES:
        raise InputError(f"palette {shown}: has {size} bytes; a palette needs less than {MAX_BYTES}")
    table = load_json(path, "give a palette as JSON")
    if not isinstance(table, dict) or "palette" not in table:
        raise InputError(f"palette {shown}: has no field 'palette'")
    names, colors = table.get("classes"), table["palette"]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"palette {shown}: classes must be a list of names")
    if names is not None and isinstance(colors, list) and len(names) != len(colors):
        raise InputError(f"palette {shown}: {len(colors)} colors for {len(names)} classes; give each class its own")
    return table


def palette_labels(source: str, num_classes: int) -> Labels:
    """How masks are read for a palette: as its file says, in a class table's fields, or the class table of its name.

    Raises:
        InputError: see ``read_palette_file``; or ``ignore_index`` is no id.
    """
    path, (name, variant) = _palette_path(source), split_variant(source)
    content = read_palette_file(path)
    ignore = content.get("ignore_index", IGNORE)
    if type(ignore) is not int or not 0 <= ignore <= 255:
        found = one_line(repr(ignore), 60)
        raise InputError(f"palette {source}: ignore_index is {found}; must be an integer in 0..255")
    tables = {name.lower(): name for name in built_in_tables()}
    if name.lower() in tables and not {"mask_values", "mask_colors"} & content.keys():
        table = load_class_table(tables[name.lower()] + (f":{variant}" if variant else ""))
        if len(table) == num_classes:
            return table.labels
    return labels_of(str(path), content, num_classes, ignore, name, variant)


def _palette_path(source: str) -> Path:
    """The file of a palette; what may stand behind its name, ``:ids`` or ``:from1``, is of its masks."""
    name = split_variant(source)[0]
    return PALETTE_FOLDER / f"{name.lower()}.json" if "/" not in name and "." not in name else Path(name)


def load_palette(source: str | Sequence[Sequence[int]], num_classes: int | None = None) -> NDArray[Any]:
    """The N class colors and the ignore color.

    Args:
        source: N + 1 triples (the published form); a JSON file; or the name of a file in ``gss/palettes``. A file
            without ``ignore_color`` gets the color farthest from its classes'.
        num_classes: N, checked where given.

    Returns:
        int64 array (N + 1, 3), values 0..255, the ignore color last.

    Raises:
        InputError: see ``check_colors``; or the number of colors is not N + 1.
    """
    if isinstance(source, str):
        path = _palette_path(source)
        table, name = read_palette_file(path), f"palette {path}"
        classes = check_colors(table["palette"], name)
        ignore = table.get("ignore_color")
        ignore = farthest_color(classes).tolist() if ignore is None else ignore
        palette = check_colors([*classes.tolist(), ignore], f"{name} with ignore_color")
    else:
        name, palette = "palette", check_colors([list(c) for c in source], "palette")
    if num_classes is not None and len(palette) != num_classes + 1:
        raise InputError(
            f"{name}: {len(palette)} colors with the one for ignored pixels; num_classes={num_classes} needs "
            f"{num_classes + 1}"
        )
    return palette


def min_distance(palette: NDArray[Any]) -> float:
    """Smallest Euclidean distance between two colors of (M, 3), in steps of 1/255."""
    squared = ((palette[:, None].astype(np.int64) - palette[None]) ** 2).sum(-1)
    return float(np.sqrt(squared[np.triu_indices(len(palette), 1)].min()))

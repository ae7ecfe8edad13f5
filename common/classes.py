"""What the ids of a mask mean: class names, colours, and the id of pixels to ignore."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.images import Labels

_FOLDER = Path(__file__).parent / "class_tables"


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Names and colours of the classes 0..N-1.

    Attributes:
        names: N class names.
        palette: (N, 3) uint8 colours for pictures, RGB.
        ignore_index: id of pixels without a class, 0..255 and none of 0..N-1.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    ignore_index: int = 255

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> Labels:
        """How mask files of this table are read and written."""
        return Labels(len(self.names), self.ignore_index)

    def is_valid(self) -> np.ndarray:
        """(256,) bool: whether an id is a class or the ignore id."""
        valid = np.arange(256) < len(self.names)
        valid[self.ignore_index] = True
        return valid


def far_apart_colors(n: int) -> np.ndarray:
    """Colours with a large smallest distance between any two, and from black, which is left for ignored pixels.

    Farthest-point choice on a 16 x 16 x 16 grid: the same colours on every machine, and the first n of them do not
    change when more are asked for.

    Args:
        n: number of colours, 0..255.

    Returns:
        (n, 3) uint8, RGB.
    """
    if not 0 <= n <= 255:
        raise InputError(f"number of classes: {n} is not in 0..255, the ids that a mask can hold")
    level = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = (grid**2).sum(axis=1)  # squared distance to the nearest colour in use; at first that is black
    colors = np.zeros((n, 3), dtype=np.uint8)
    for i in range(n):
        color = grid[nearest.argmax()]
        colors[i] = color
        nearest = np.minimum(nearest, ((grid - color) ** 2).sum(axis=1))
    return colors


def built_in_tables() -> dict[str, Path]:
    """Names of the built-in class tables, and their files."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.json"))}


def load_class_table(name_or_path: str) -> ClassTable:
    """Loads a built-in table (FUSU, GID, LoveDA, MBRSC; upper or lower case) or a ``classes.json``.

    The file holds ``{"classes": [names], "palette": [[r, g, b], ...], "ignore_index": 255}``; without ``palette`` the
    classes get far-apart colours, without ``ignore_index`` it is 255.

    Raises:
        InputError: no such table, or a file that does not hold one; the message names file and field.
    """
    built_in = built_in_tables()
    by_lower = {name.lower(): path for name, path in built_in.items()}
    path = by_lower.get(str(name_or_path).lower(), Path(name_or_path))
    if not path.is_file():
        raise InputError(
            f"classes {name_or_path}: no such class table; use {', '.join(built_in)} or the path of a classes.json"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: no readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: must be a JSON object such as {{"classes": ["water", "forest"]}}')
    names = _names(path, content.get("classes"))
    return ClassTable(
        names, _palette(path, content.get("palette"), len(names)), _ignore_index(path, content, len(names))
    )


def _names(path: Path, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name.strip() for name in value):
        raise InputError(f"{path}, field classes: must be a list of names, at least one")
    names = tuple(name.strip() for name in value)
    lower = [name.lower() for name in names]
    if twice := sorted({name for name in lower if lower.count(name) > 1}):
        raise InputError(f"{path}, field classes: duplicate names: {', '.join(twice)}; each name once")
    if len(names) > 255:
        raise InputError(f"{path}, field classes: {len(names)} names; a mask of 8 bits holds at most 255 and ignore")
    return names


def _palette(path: Path, value: Any, n: int) -> np.ndarray:
    if value is None:
        return far_apart_colors(n)
    if not isinstance(value, list) or len(value) != n:
        has = len(value) if isinstance(value, list) else "none"
        raise InputError(f"{path}, field palette: must be a list of {n} colours, one a class; has {has}")
    for i, color in enumerate(value):
        fine = isinstance(color, list) and len(color) == 3
        if not fine or not all(type(level) is int and 0 <= level <= 255 for level in color):
            raise InputError(f"{path}, field palette: colour {i} is {color}; must be [r, g, b] with integers 0..255")
    return np.array(value, dtype=np.uint8)


def _ignore_index(path: Path, content: dict[str, Any], n: int) -> int:
    value = content.get("ignore_index", 255)
    if type(value) is not int or not n <= value <= 255:
        raise InputError(
            f"{path}, field ignore_index: is {value}; must be an integer in {n}..255, beside the class ids"
        )
    return value

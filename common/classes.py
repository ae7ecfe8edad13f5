"""What the ids of a mask mean: class names, colors, and the id of pixels to ignore."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.images import IGNORE, Colors, Labels
from common.schema import load_json, one_line

_FOLDER = Path(__file__).parent / "class_tables"
_FIELDS = (
    "classes",
    "palette",
    "ignore_index",
    "mask_values",
    "mask_ignore",
    "mask_colors",
    "mask_ignore_colors",
    "ignore_color",
)
VARIANTS = ("ids", "from1")  # behind a table's name: what its files hold, whatever the table says
MAX_BYTES = 1 << 20
_MAX_NAME = 200  # letters of a class name


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Names and colors of the classes 0..N-1.

    Attributes:
        names: N class names.
        palette: (N, 3) uint8 colors for pictures, RGB.
        ignore_index: id of pixels to ignore in mask files, 0..255; a class of that id is ignored. Once read, pixels to
            ignore are 255 (see ``labels``).
        labels: how mask files of this table are read and written.
    """

    names: tuple[str, ...]
    palette: NDArray[Any]
    ignore_index: int
    labels: Labels

    def __len__(self) -> int:
        return len(self.names)


def far_apart_colors(n: int) -> NDArray[Any]:
    """Colors with a large smallest distance between any two, and from black, which is left for ignored pixels.

    Farthest-point choice on a 16 x 16 x 16 grid: the same colors on every machine, and the first n of them do not
    change when more are asked for.

    Args:
        n: number of colors, 0..255.

    Returns:
        (n, 3) uint8, RGB.
    """
    if not 0 <= n <= 255:
        raise InputError(f"number of classes: {n} is not in 0..255, the ids that a mask can hold")
    return farthest_colors(np.zeros((1, 3), dtype=np.int64), n, np.arange(0, 256, 17)).astype(np.uint8)


def farthest_colors(used: NDArray[Any], n: int, levels: NDArray[Any]) -> NDArray[Any]:
    """The n colors that, one after the other, are farthest from all before them and from those in use.

    Args:
        used: (M, 3) integers, at least one.
        n: number of colors.
        levels: of red, green and blue, 0..255, from which colors are chosen.

    Returns:
        (n, 3) int64, RGB; of equally far ones the darkest.
    """
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = np.full(len(grid), np.iinfo(np.int64).max)  # squared distance to the nearest color in use
    for color in used:
        nearest = np.minimum(nearest, ((grid - color) ** 2).sum(axis=1))
    colors = np.zeros((n, 3), dtype=np.int64)
    for i in range(n):
        colors[i] = grid[nearest.argmax()]
        nearest = np.minimum(nearest, ((grid - colors[i]) ** 2).sum(axis=1))
    return colors


def built_in_tables() -> dict[str, Path]:
    """Names of the built-in class tables, and their files."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.json"))}


def load_class_table(name_or_path: str, distinct_colors: bool = False) -> ClassTable:
    """Loads a built-in table (FUSU, GID, LoveDA, MBRSC; upper or lower case) or a ``classes.json``.

    The file holds ``{"classes": [names], "palette": [[r, g, b], ...], "ignore_index": 255}``; without ``palette`` the
    classes get far-apart colors, without ``ignore_index`` it is 255. It may say what mask files hold:

    * ``mask_values``: the files' id of each class, where it is not 0..N-1; ``mask_ignore``: ids to ignore beside
      ``ignore_index``. LoveDA's table has 1..7 and 0, as the data set is published.
    * ``mask_colors``: the color of each class, in files that are pictures; ``mask_ignore_colors``: those to ignore.
      Without them these are ``palette``, if all its colors differ, and ``ignore_color``.

    Args:
        name_or_path: the table; ``TABLE:ids`` where files hold 0..N-1, ``TABLE:from1`` where they hold 1..N, and 0 for
            no data, whatever the table says.
        distinct_colors: refuses two classes of one color, and one of black, the color of ignored pixels: for uses
            that tell classes by their colors.

    Raises:
        InputError: no such table, or a file that does not hold one; the message names file and field.
    """
    built_in = built_in_tables()
    by_lower = {name.lower(): path for name, path in built_in.items()}
    table_name, variant = split_variant(str(name_or_path))
    path = by_lower.get(table_name.lower(), Path(table_name))
    shown = one_line(path, 1000)
    try:
        found, size = path.is_file(), path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):  # a NUL byte, a name too long
        found, size = False, 0
    if not found:
        raise InputError(
            f"classes {one_line(name_or_path, 1000)}: no such class table; use {', '.join(built_in)} or "
            "the path of a classes.json"
        )
    if size > MAX_BYTES:
        raise InputError(f"{shown}: has {size} bytes; a class table needs less than {MAX_BYTES}")
    content = load_json(path, 'write {"classes": ["water", "forest"]} as UTF-8')
    table = class_table(content, shown, table_name, variant)
    if distinct_colors:
        _check_distinct(shown, table)
    return table


def class_table(content: Any, shown: str, name: str = "", variant: str = "") -> ClassTable:
    """The table that the content of a ``classes.json`` is; see ``load_class_table`` for its fields.

    Args:
        content: what JSON gave, or another tool's list of classes brought into that form.
        shown: the file, for messages.
        name: of the table, for messages.
        variant: one of ``VARIANTS``, or nothing.

    Raises:
        InputError: it is none; the message names file and field.
    """
    if not isinstance(content, dict):
        raise InputError(f'{shown}: must be a JSON object such as {{"classes": ["water", "forest"]}}')
    for key in set(content) - set(_FIELDS):
        if meant := get_close_matches(key.lower(), _FIELDS, 1, 0.75):
            raise InputError(f"{shown}: unknown field {one_line(key, 60)}; write {meant[0]}, or name a note otherwise")
    names = _names(shown, content.get("classes"))
    ignore_index = _ignore_index(shown, content, names)
    labels = labels_of(shown, content, len(names), ignore_index, name, variant)
    return ClassTable(names, _palette(shown, content.get("palette"), len(names)), ignore_index, labels)


def plain_name(name: str) -> str:
    """A class name as names are compared: case, spaces, hyphens and underscores do not matter."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def _names(path: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name.strip() for name in value):
        raise InputError(f"{path}, field classes: must be a list of names, at least one")
    names = tuple(name.strip() for name in value)
    if len(names) > 255:
        raise InputError(f"{path}, field classes: {len(names)} names; a mask of 8 bits holds at most 255 and ignore")
    for name in names:
        if not name.isprintable():
            raise InputError(
                f"{path}, field classes: {one_line(ascii(name), 60)} holds a line break or a character "
                "that is no text; rename the class"
            )
        if len(name) > _MAX_NAME:
            shown = one_line(name, 40)
            raise InputError(f"{path}, field classes: {shown} has {len(name)} letters; at most {_MAX_NAME}")
    plain = [plain_name(name) for name in names]
    if twice := sorted({name for name in plain if plain.count(name) > 1}):
        first, second = [name for name in names if plain_name(name) == twice[0]][:2]
        same = first if first == second else f"{first} and {second} (case, spaces, - and _ do not count)"
        more = f", and {len(twice) - 1} more" if len(twice) > 1 else ""
        raise InputError(f"{path}, field classes: duplicate names: {same}{more}; each name once")
    return names


def _check_distinct(path: str, table: ClassTable) -> None:
    seen = {(0, 0, 0): "ignored pixels"}
    for name, color in zip(table.names, map(tuple, table.palette.tolist()), strict=True):
        if color in seen:
            raise InputError(
                f"{path}, field palette: {name} and {seen[color]} have the color {list(color)}; here "
                "colors tell classes apart, each needs its own"
            )
        seen[color] = name


def _palette(path: str, value: Any, n: int) -> NDArray[Any]:
    return far_apart_colors(n) if value is None else np.array(_colors(path, "palette", value, n), dtype=np.uint8)


def _colors(path: str, field: str, value: Any, n: int | None) -> list[list[int]]:
    if not isinstance(value, list) or n not in (None, len(value)):
        has = len(value) if isinstance(value, list) else "none"
        count = "colors" if n is None else f"{n} colors, one a class"
        raise InputError(f"{path}, field {field}: must be a list of {count}; has {has}")
    for i, color in enumerate(value):
        fine = isinstance(color, list) and len(color) == 3
        if not fine or not all(type(level) is int and 0 <= level <= 255 for level in color):
            raise InputError(
                f"{path}, field {field}: color {i} is {one_line(repr(color), 60)}; must be [r, g, b] of "
                "integers in 0..255"
            )
    return value


def split_variant(name: str) -> tuple[str, str]:
    """A table's name or path, and what stands behind it: ``LoveDA:ids`` -> ``LoveDA``, ``ids``."""
    table, _, variant = name.rpartition(":")
    return (table, variant) if table and variant in VARIANTS else (name, "")


def table_file(name: str) -> Path | None:
    """The file of a table that is given by its path, without what stands behind it; None for a built-in one."""
    table = split_variant(name)[0]
    return None if table.lower() in (known.lower() for known in built_in_tables()) else Path(table)


def labels_of(path: str, content: dict[str, Any], n: int, ignore_index: int, name: str, variant: str = "") -> Labels:
    """How mask files are read: which id, and which color, is which class.

    Args:
        path: of the table, for messages.
        content: the table; see ``load_class_table`` for its fields.
        n: number of classes.
        ignore_index: id to ignore in files.
        name: of the table, for messages.
        variant: one of ``VARIANTS``, or nothing.

    Raises:
        InputError: ids or colors that cannot be, or that stand for two classes.
    """
    values = _ids(path, "mask_values", content["mask_values"], n) if "mask_values" in content else list(range(n))
    ignored = _ids(path, "mask_ignore", content.get("mask_ignore", []), None)
    if "mask_values" not in content and ignored:
        raise InputError(f"{path}, field mask_ignore: goes with mask_values; give both")
    if twice := sorted({value for value in [*values, *ignored] if [*values, *ignored].count(value) > 1}):
        raise InputError(f"{path}, field mask_values: {twice[0]} stands for two classes, or is in mask_ignore as well")
    from_one = values == list(range(1, n + 1)) and 0 in ignored
    if variant == "ids":
        values, ignored = list(range(n)), []
    elif variant == "from1":
        values, ignored = list(range(1, n + 1)), [0]
    if max(values) > 255:
        raise InputError(f"{path}, field classes: {n} classes from 1 on; a mask of 8 bits holds at most 254 and ignore")
    of_id, notice = None, ""
    if values != list(range(n)) or ignored:
        table = np.full(256, -1)
        table[values] = range(n)
        table[[*ignored, ignore_index]] = IGNORE
        of_id = tuple(table.tolist())
        shown = f"{values[0]}..{values[-1]}" if values == list(range(values[0], values[0] + n)) else "mask_values"
        zero = f", {', '.join(map(str, ignored))} no data" if ignored else ""
        notice = (
            f"classes {one_line(name, 80)}: {shown} in masks are its {n} classes{zero}; write "
            f"{one_line(name, 80)}:ids if masks hold 0..{n - 1}"
        )
    colors = _mask_colors(path, content, n, values, ignored, ignore_index)
    guarded = n if from_one and not variant else None
    return Labels(n, ignore_index, of_id=of_id, colors=colors, name=one_line(name, 80), notice=notice, guarded=guarded)


def _mask_colors(
    path: str, content: dict[str, Any], n: int, values: list[int], ignored: list[int], ignore_index: int
) -> Colors:
    if "mask_colors" in content:
        colors = _colors(path, "mask_colors", content["mask_colors"], n)
        others = _colors(path, "mask_ignore_colors", content.get("mask_ignore_colors", []), None)
    elif "mask_ignore_colors" in content:
        raise InputError(f"{path}, field mask_ignore_colors: goes with mask_colors; give both")
    else:
        colors, others = _usual_mask_colors(path, content, n)
    every = [tuple(color) for color in [*colors, *others]]
    if len(set(every)) < len(every):
        twice = next(color for color in every if every.count(color) > 1)
        raise InputError(
            f"{path}, field mask_colors: {list(twice)} stands for two classes, or is in mask_ignore_colors as well"
        )
    nothing = ignored[0] if ignored else ignore_index
    ids = [*values[: len(colors)], *[nothing] * len(others)]
    return tuple((red, green, blue, id_) for (red, green, blue), id_ in zip([*colors, *others], ids, strict=True))


def _usual_mask_colors(path: str, content: dict[str, Any], n: int) -> tuple[list[list[int]], list[list[int]]]:
    """Colors of classes, and of pixels to ignore, of a table that does not say them: those of its pictures.

    None where two classes have one color: a mask in such colors would be a guess.
    """
    if content.get("palette") is None:
        return [], []
    classes = _colors(path, "palette", content["palette"], n)
    ignored = [] if content.get("ignore_color") is None else _colors(path, "ignore_color", [content["ignore_color"]], 1)
    every = {tuple(color) for color in [*classes, *ignored]}
    return ([], []) if len(every) < len(classes) + len(ignored) else (classes, ignored)


def _ids(path: str, field: str, value: Any, n: int | None) -> list[int]:
    fine = isinstance(value, list) and n in (None, len(value))
    if not fine or not all(type(id_) is int and 0 <= id_ <= 255 for id_ in value):
        count = "ids" if n is None else f"{n} ids, one a class,"
        raise InputError(f"{path}, field {field}: must be a list of {count} in 0..255")
    return list(value)


def _ignore_index(path: str, content: dict[str, Any], names: tuple[str, ...]) -> int:
    value = content.get("ignore_index", 255)
    if type(value) is not int or not 0 <= value <= 255:
        raise InputError(
            f"{path}, field ignore_index: is {one_line(repr(value), 60)}; must be an integer in 0..255, "
            "the id of pixels to ignore"
        )
    if len(names) == 1 and value == 0:
        raise InputError(f"{path}, field ignore_index: is 0, the only class; no class would be left")
    return value

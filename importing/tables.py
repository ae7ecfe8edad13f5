"""Class tables: ours, and those that other tools put beside their masks, in the form of a ``classes.json``."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.classes import ClassTable, class_table, load_class_table, split_variant
from common.errors import InputError
from common.images import IGNORE, Labels
from common.schema import one_line

_OWN = Path(__file__).parent / "class_tables"
_WITHOUT_LABEL = ("__ignore__", "unlabeled", "unlabelled", "unknown", "void", "ignore")  # names that stand for no class
_MAX_BYTES = 1 << 20


def own_tables() -> dict[str, Path]:
    """Class tables of published data sets that come with the importer, by name in small letters."""
    return {path.stem.lower(): path for path in sorted(_OWN.glob("*.json"))}


def table_named(name: str) -> ClassTable:
    """A class table by name, or from a file: ``classes.json``, ``labelmap.txt``, a CSV, or names one a line.

    Raises:
        InputError: there is none, or it contradicts itself.
    """
    plain, variant = split_variant(name)
    if path := own_tables().get(plain.lower()):
        return load_class_table(f"{path}:{variant}" if variant else str(path))
    path = Path(plain)
    if path.suffix.lower() in _READERS and path.is_file():
        return _READERS[path.suffix.lower()](path)
    return load_class_table(name)


def table_beside(root: Path) -> tuple[Path, ClassTable] | None:
    """The class table that lies in a folder, whichever tool wrote it; None where there is none."""
    for pattern in (
        "classes.json",
        "labelmap.txt",
        "*class_dict.csv",
        "*_classes.csv",
        "class_names.txt",
        "labels.txt",
    ):
        if found := sorted(root.glob(pattern)):
            return found[0], table_named(str(found[0]))
    return None


def table_of_names(names: Sequence[str]) -> ClassTable:
    """Classes 0..N-1 that have names alone; their colors are far apart."""
    return class_table({"classes": list(names)}, "‹class_names›", "‹class_names›")


def with_map(table: ClassTable, given: Sequence[str]) -> ClassTable:
    """The same classes, of mask files that number them otherwise.

    Args:
        table: class names.
        given: ``1:0``, several in a word or in several; to 255 for what is to be ignored. Other ids are refused.

    Raises:
        InputError: no such pairs, or a class that the table does not have.
    """
    of_id = [-1] * 256
    for word in ",".join(given).replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", word)
        if not match or int(match[1]) > IGNORE:
            raise InputError(f"‹map› {one_line(word, 60)}: write ID:CLASS with ids in 0..255, such as 1:0,2:1")
        id_, to = int(match[1]), int(match[2])
        if to >= len(table) and to != IGNORE:
            raise InputError(f"‹map› {word}: there are {len(table)} classes, 0..{len(table) - 1}; to ignore: {id_}:255")
        if of_id[id_] >= 0:
            raise InputError(f"‹map› {word}: id {id_} is there twice")
        of_id[id_] = to
    if of_id[IGNORE] < 0:
        of_id[IGNORE] = IGNORE
    return replace(table, labels=Labels(len(table), of_id=tuple(of_id), name="‹map›"))


def need_colors(table: ClassTable, shown: str) -> None:
    """Refuses a table by whose colors masks are to be read, if two of its classes have one, or none has.

    Raises:
        InputError: names both classes.
    """
    if table.labels.colors:
        return
    seen: dict[tuple[int, ...], str] = {}
    for name, color in zip(table.names, map(tuple, table.palette.tolist()), strict=True):
        if color in seen:
            raise InputError(
                f"{shown}, field palette: {seen[color]} and {name} have the color {list(color)}; masks in colors need "
                "one of its own for each class"
            )
        seen[color] = name
    raise InputError(f"{shown}: names no colors, and the masks are pictures in colors; add palette or mask_colors")


def _rows(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: has more than {_MAX_BYTES} bytes; that is no list of classes")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(getattr(error, 'strerror', None) or error)})") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _from_colors(path: Path, entries: list[tuple[str, list[int]]]) -> ClassTable:
    """Classes and their colors; entries that stand for no class are to be ignored."""
    classes = [(name, color) for name, color in entries if name.lower() not in _WITHOUT_LABEL]
    ignored = [color for name, color in entries if name.lower() in _WITHOUT_LABEL]
    colors = [color for _, color in classes]
    for i, (name, color) in enumerate(entries):
        if other := next((first for first, of in entries[:i] if of == color), None):
            raise InputError(f"{path}: {other} and {name} have the color {color}; each class needs its own")
    content = {"classes": [name for name, _ in classes], "palette": colors, "mask_colors": colors}
    return class_table({**content, "mask_ignore_colors": ignored}, str(path), str(path))


def _color(path: Path, number: int, words: Sequence[str]) -> list[int]:
    values = [int(word) if re.fullmatch(r"\s*\d{1,3}\s*", word) else 256 for word in words]
    if len(values) != 3 or max(values) > 255:
        shown = one_line(",".join(words), 60)
        raise InputError(f"{path} line {number}: {shown} is no color; write red, green and blue in 0..255")
    return values


def _labelmap(path: Path) -> ClassTable:
    """CVAT's ``labelmap.txt``, ``name:r,g,b:parts:actions``; or names, one a line."""
    lines = [(number, line) for number, line in _rows(path) if not line.startswith("#")]
    if not any(":" in line for _, line in lines):
        return _from_names(path, [line.strip() for _, line in lines])
    entries = []
    for number, line in lines:
        fields = line.split(":")
        if len(fields) != 4:
            raise InputError(
                f"{path} line {number}: {one_line(line, 60)} is not name:r,g,b:parts:actions, the form of CVAT's "
                "Segmentation mask 1.1; export in that form"
            )
        entries.append((fields[0].strip(), _color(path, number, fields[1].split(","))))
    return _from_colors(path, entries)


def _from_names(path: Path, names: list[str]) -> ClassTable:
    """Names, one a line, in the order of ids; LabelMe's ``__ignore__`` comes first and stands for no class."""
    if names[:1] and names[0].lower() in _WITHOUT_LABEL:
        names = names[1:]
    return class_table({"classes": names}, str(path), str(path))


def _csv(path: Path) -> ClassTable:
    """``name,r,g,b`` with such a header, or Roboflow's ``Pixel Value, Class``."""
    numbers, lines = zip(*_rows(path), strict=True) if path.stat().st_size else ((), ())
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    header = [cell.lower() for cell in rows[0]] if rows else []
    if header == ["pixel value", "class"]:
        ids, names = [], []
        for number, row in zip(numbers[1:], rows[1:], strict=True):
            if len(row) != 2 or not row[0].isdecimal() or int(row[0]) > IGNORE:
                raise InputError(
                    f"{path} line {number}: {one_line(','.join(row), 60)} is not a value in 0..255 and a class"
                )
            ids.append(int(row[0]))
            names.append(row[1])
        content: dict[str, Any] = {"classes": names}
        return class_table(
            {**content, "mask_values": ids} if ids != list(range(len(ids))) else content, str(path), str(path)
        )
    if len(header) == 4 and header[1:] == ["r", "g", "b"]:
        entries = []
        for number, row in zip(numbers[1:], rows[1:], strict=True):
            entries.append((row[0], _color(path, number, row[1:])))
        return _from_colors(path, entries)
    raise InputError(
        f"{path} line 1: {one_line(','.join(header), 60) or 'nothing'} is no header that is known here; write "
        "name,r,g,b or Pixel Value, Class"
    )


_READERS: dict[str, Callable[[Path], ClassTable]] = {".txt": _labelmap, ".csv": _csv}

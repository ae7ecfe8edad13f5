"""Lists of items as JSON lines: read with bounds, and paths that do not leave the data root unseen."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.schema import one_line, parse_json

MAX_BYTES = 1 << 30  # of a list
MAX_LINE = 1 << 20  # letters of a line
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number, from 1, and text of each line of a UTF-8 file that is not blank.

    Raises:
        InputError: the file cannot be read, or is too large to be a list.
    """
    shown = one_line(path, 1000)
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InputError(f"{shown}: has {size} bytes, more than {MAX_BYTES}; split the list")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = one_line(getattr(error, "strerror", None) or error)
        raise InputError(f"{shown}: cannot read the list ({reason}); it must be UTF-8 text") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def parse_line(text: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        ValueError: it is none; the message says why and what to do.
    """
    if len(text) > MAX_LINE:
        raise ValueError(f"has {len(text)} letters, at most {MAX_LINE} are read; write one JSON object a line")
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object ({one_line(error)}); write one JSON object a line") from error
    if not isinstance(content, dict):
        raise ValueError(f'no JSON object but a {type(content).__name__}; write {{"source": "label/a.png", ...}}')
    return content


def text_fault(text: str) -> str:
    """What is wrong with a text that is to be read by people and models; empty where nothing is."""
    if found := _NO_TEXT.search(text):
        return f"holds {found[0]!a} at letter {found.start() + 1}, which is no text; remove it"
    return ""


def locate(written: str, root: Path, follow_links: bool = False) -> Path:
    """The file of a path in a list.

    Args:
        written: as the list has it, relative to ``root``.
        root: the data root.
        follow_links: take files outside the root that links inside it lead to.

    Raises:
        ValueError: no such file, or one outside the root; the message says why and what to do.
    """
    shown = one_line(written, 500)
    if not written.isprintable():
        raise ValueError(
            f"no usable path: {one_line(ascii(written), 500)} holds a line break or a character that is "
            "no text; rename the file"
        )
    try:
        path = root / written
        real, exists = path.resolve(), path.is_file()
        inside = real.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a loop of links
        reason = one_line(getattr(error, "strerror", None) or error)
        raise ValueError(f"no usable path: {one_line(written, 80)} ({reason}); correct the list") from error
    if not inside:
        base = Path(os.path.abspath(root))  # noqa: PTH100 (links are to stay)
        if not Path(os.path.normpath(base / written)).is_relative_to(base):
            raise ValueError(f"path leaves the data root {root}: {shown}; keep the file below the data root")
        if not follow_links:
            raise ValueError(
                f"{shown} leads by a link to {one_line(real, 500)}, outside the data root {root}; copy "
                "the file there, or take such files with ‹follow_links›"
            )
    if not exists:
        what = f"is a link to {one_line(real, 500)}, which is not there" if path.is_symlink() else "file not found"
        message = f"{shown} {what}" if path.is_symlink() else f"{what}: {shown}"
        raise ValueError(f"{message} (below {root}); correct the list or the data root")
    return path

"""Words of a command line as values: whole numbers and numbers with bounds, texts, paths, truth values.

Each is an argparse type: it raises ``ArgumentTypeError`` with what to write instead.
"""

from __future__ import annotations

import math
import re
import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from common import limits
from common.schema import one_line


def integer(low: int, high: int = limits.COUNT) -> Callable[[str], int]:
    """An argparse type: a whole number from ``low`` to ``high``, in decimal digits."""

    def convert(word: str) -> int:
        value = int(word) if re.fullmatch(r"[+-]?[0-9]{1,50}", word) else low - 1
        if not low <= value <= high:
            raise ArgumentTypeError(f"{one_line(word, 60)}: write a whole number, {low} to {high}")
        return value

    return convert


pixels = integer(1, limits.PIXELS)
batch_size = integer(1, limits.BATCH)
workers = integer(0, limits.WORKERS)
random_seed = integer(0, 2**32 - 1)


def number(low: float, high: float = limits.NUMBER) -> Callable[[str], float]:
    """An argparse type: a finite number from ``low`` to ``high``."""

    def convert(word: str) -> float:
        try:
            value = float(word) if word.isascii() and "_" not in word else math.nan
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise ArgumentTypeError(f"{one_line(word, 60)}: write a number, {low:g} to {high:g}")
        return value

    return convert


def text(value: str) -> str:
    """An argparse type, of all options without another: a text of one line that can be printed.

    A control character, half of a surrogate pair (a byte that is not UTF-8) and what turns the reading direction are
    refused: they would end up in names of files, and in messages.
    """
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202d\u202e\u2066\u2067" for c in value):
        raise ArgumentTypeError(f"{one_line(repr(value), 60)}: has characters that no name should have")
    return value


def file_path(value: str) -> Path:
    """An argparse type, of all options of type ``Path``: a text that can be a path."""
    longest = max(len(part.encode(errors="replace")) for part in value.split("/"))
    if not value.strip() or longest > 255 or len(value) > 4000:
        raise ArgumentTypeError(f"{one_line(repr(value), 60)}: empty, or too long for a path")
    return Path(text(value))


def name(value: str) -> str:
    """An argparse type: a name of a folder below another one."""
    path = file_path(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ArgumentTypeError(f"{one_line(value, 60)}: write a name, which leads nowhere else")
    return value


def flag(word: str) -> bool:
    """``true``/``false`` in the usual and the published spellings, for options such as ``-t true``."""
    spellings = (("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0"))
    value = next((not no for no, words in enumerate(spellings) if word.lower() in words), None)
    if value is None:
        raise ArgumentTypeError(f"{one_line(word, 60)}: write true or false")
    return value

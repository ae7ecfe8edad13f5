"""What every command has in common: errors in one line, exit codes, and help that shows defaults."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from common.errors import InputError
from common.files import full_disk_line
from common.processes import worker_line
from common.schema import one_line

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions at import


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option's default, unless its help does, and keeps the description's line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if "(default" in (action.help or "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Refuses in one line, as the commands themselves do; argparse would print all options first."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"error: {message.removeprefix('argument ')} (see --help)\n")


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser in the house style; it refuses abbreviated options."""
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def run(main: Callable[[], int | None]) -> None:
    """Runs a command; exit code 2 and one line for bad input, a full disk, a dead data worker or too little memory.

    Ctrl-C is exit code 130.

    Args:
        main: the command; None or 0 is success.
    """
    try:
        code = main() or 0
    except InputError as error:
        told = "disk full" in str(error)
        print(f"error: {error if told else full_disk_line(error) or worker_line(error) or error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except Exception as error:
        line = full_disk_line(error) or worker_line(error) or short_of_memory(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        code = 2
    sys.exit(code)


def short_of_memory(error: Exception) -> str | None:
    """What to tell of memory, the GPU's or the machine's, that was not enough; None if the error is another."""
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return f"not enough memory ({one_line(text, 120) or 'no more is given'}); take smaller sizes or batches"
    return None


_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Storage size calculation")


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number from ``low``, up to ``high`` if given."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text}: write a whole number, {_range(low, high)}")
        return value

    return convert


def number(low: float, high: float | None = None) -> Callable[[str], float]:
    """An argparse type: a finite number from ``low``, up to ``high`` if given."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value and (high is None or value <= high)):
            raise argparse.ArgumentTypeError(f"{text}: write a number, {_range(low, high)}")
        return value

    return convert


def _range(low: float, high: float | None) -> str:
    return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"


def flag(text: str) -> bool:
    """``true``/``false`` in the usual spellings, for options such as ``-t true``."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text}: write true or false")
    return value

"""What every command has in common: errors in one line, exit codes, and help that shows defaults."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from common import limits
from common.errors import InputError
from common.files import full_disk_line
from common.processes import worker_line
from common.schema import one_line

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions at import
LINE = 3000  # characters of a refusal


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option's default, unless its help does, and keeps the description's line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if "(default" in (action.help or "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Refuses in one line, as the commands themselves do; argparse would print all options first.

    Options are taken with underscores and with dashes: ``--num-classes`` is ``--num-classes``, and the reverse.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", None, text)
        self.register("type", Path, file_path)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, the options' names brought to their own spelling."""
        written = list(sys.argv[1:] if args is None else args)
        end = written.index("--") if "--" in written else len(written)
        for i, word in enumerate(written[:end]):
            if isinstance(word, str):
                written[i] = self.own_spelling(word)
        return super().parse_known_args(written, namespace)

    def own_spelling(self, word: str) -> str:
        """A word of the command line; an option of ours, in whatever dialect, as our help writes it."""
        name, equals, value = word.partition("=")
        if name.startswith("--") and name not in self._option_string_actions:
            dashes = name.replace("_", "-")
            for spelling in (
                dashes,
                dashes.replace("colour", "color").replace("ised", "ized"),
            ):  # the second: until 1.0
                if spelling in self._option_string_actions:
                    return spelling + equals + value
        return word

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"error: {one_line(message.removeprefix('argument '), LINE)} (see --help)\n")


def parser(description: str) -> Parser:
    """An argument parser in the house style; it refuses abbreviated options."""
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def run(main: Callable[[], int | None]) -> None:
    """Runs a command; exit code 2 and one line for bad input, a full disk, a dead data worker or too little memory.

    Ctrl-C is exit code 130, an output that nobody reads any more 141; as shells count.

    Args:
        main: the command; None or 0 is success.
    """
    try:
        code = main() or 0
    except InputError as error:
        told = "disk full" in str(error)
        cause = error if told else full_disk_line(error) or worker_line(error) or error
        print(f"error: {one_line(cause, LINE)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # what reads the output has ended, as head does: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except Exception as error:
        line = full_disk_line(error) or worker_line(error) or short_of_memory(error)
        if line is None:
            raise
        print(f"error: {one_line(line, LINE)}", file=sys.stderr)
        code = 2
    sys.exit(code)


def short_of_memory(error: Exception) -> str | None:
    """What to tell of memory, the GPU's or the machine's, that was not enough; None if the error is another."""
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return f"not enough memory ({one_line(text, 120) or 'no more is given'}); take smaller sizes or batches"
    return None


_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Storage size calculation")


def integer(low: int, high: int = limits.COUNT) -> Callable[[str], int]:
    """An argparse type: a whole number from ``low`` to ``high``, in decimal digits."""

    def convert(word: str) -> int:
        value = int(word) if re.fullmatch(r"[+-]?[0-9]{1,50}", word) else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{one_line(word, 60)}: write a whole number, {low} to {high}")
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
            raise argparse.ArgumentTypeError(f"{one_line(word, 60)}: write a number, {low:g} to {high:g}")
        return value

    return convert


def text(value: str) -> str:
    """An argparse type, of all options without another: a text of one line that can be printed.

    A control character, half of a surrogate pair (a byte that is not UTF-8) and what turns the reading direction are
    refused: they would end up in names of files, and in messages.
    """
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202d\u202e\u2066\u2067" for c in value):
        raise argparse.ArgumentTypeError(f"{one_line(repr(value), 60)}: has characters that no name should have")
    return value


def file_path(value: str) -> Path:
    """An argparse type, of all options of type ``Path``: a text that can be a path."""
    longest = max(len(part.encode(errors="replace")) for part in value.split("/"))
    if not value.strip() or longest > 255 or len(value) > 4000:
        raise argparse.ArgumentTypeError(f"{one_line(repr(value), 60)}: empty, or too long for a path")
    return Path(text(value))


def name(value: str) -> str:
    """An argparse type: a name of a folder below another one."""
    path = file_path(value)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise argparse.ArgumentTypeError(f"{one_line(value, 60)}: write a name, which leads nowhere else")
    return value


def add_trust(options: argparse.ArgumentParser) -> None:
    """The option ``--trust`` of commands that read a model's YAML."""
    options.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="packages (or hub names) that a configuration may name beside ours: their code is run",
    )


def flag(word: str) -> bool:
    """``true``/``false`` in the usual and the published spellings, for options such as ``-t true``."""
    spellings = (("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0"))
    value = next((not no for no, words in enumerate(spellings) if word.lower() in words), None)
    if value is None:
        raise argparse.ArgumentTypeError(f"{one_line(word, 60)}: write true or false")
    return value

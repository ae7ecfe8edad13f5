"""What every command has in common: options from a dataclass, errors in one line, exit codes, help with defaults."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from common.converters import file_path, text
from common.errors import InputError, spelled
from common.files import full_disk_line
from common.options import Options, add_options, flag_of, from_namespace
from common.processes import worker_line
from common.schema import one_line

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions at import
LINE = 3000  # characters of a refusal
T = TypeVar("T", bound=Options)
_read: list[type[Options]] = []  # whose fields this process's command line has given


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option's default, unless its help does, and keeps the description's line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = "(default" in (action.help or "") or action.default in (None, (), [])
        return action.help if told else super()._get_help_string(action)


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


# Where the command was called as ``tisynth train``, tisynth/__main__.py says so here, for the help texts.
program: str | None = None
spoken_as: dict[str, str] = {}  # "python -m scripts.train" -> "tisynth train"


def parser(description: str, task: str = "") -> Parser:
    """An argument parser in the house style; it refuses abbreviated options.

    Args:
        description: what the command does, with examples that start ``python -m scripts.NAME``.
        task: the word that chose this parser among several of one command (``predict``).
    """
    for written, said in spoken_as.items():
        description = re.sub(re.escape(written) + (r"\b" if written[-1].isalnum() else ""), said, description)
    name = f"{program} {task}".strip() if program else None
    return Parser(prog=name, description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def read_options(
    options: type[T],
    description: str,
    words: Sequence[str] | None = None,
    task: str = "",
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> T:
    """The options of a command line; a refusal of theirs, here or later, names what was typed, not the field.

    Args:
        options: the dataclass of the work to be done.
        description: of the command, for its help.
        words: the command line; this process's by default.
        task: see ``parser``.
        presets: by the names that the option ``--preset`` takes, fields whose values take the place of the defaults.

    Raises:
        InputError: options that contradict each other. What is no option ends the process with exit code 2.
    """
    line = parser(description, task)
    add_options(line, options)
    if presets is not None:
        first = Parser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset")
        line.set_defaults(**presets.get(first.parse_known_args(words)[0].preset, {}))
    return taken(options, line.parse_args(words))


def taken(options: type[T], namespace: argparse.Namespace) -> T:
    """As ``read_options``, of what a parser with more than these options has parsed."""
    _read.append(options)
    return from_namespace(options, namespace)


def check_words(read: Callable[[Sequence[str]], object], words: Sequence[str]) -> None:
    """Has another command's line read as that command would, and keeps nothing of it: for checks before long work.

    Args:
        read: parses words as the command does.
        words: the command line.

    Raises:
        InputError: the command would refuse it; says what it would print.
    """
    remembered, said = len(_read), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            read(words)
    except SystemExit as end:  # argparse's; of --help, too, which says nothing on stderr
        reason = said.getvalue().removeprefix("error: ").strip().removesuffix(" (see --help)")
        raise InputError(reason or "only prints its help") from end
    except InputError as error:
        raise InputError(as_typed(error)) from error
    finally:
        del _read[remembered:]


def as_typed(error: InputError) -> str:
    """A refusal with the fields of options as the user typed them."""
    return error.told(_typed)


def note(text: str, file: TextIO | None = None) -> None:
    """A line that is no error, on stderr or in ``file``; fields of options in it as the user typed them."""
    print(spelled(text, _typed), file=file or sys.stderr)


def _typed(field: str) -> str:
    return next((flag for options in reversed(_read) if (flag := flag_of(options, field))), field)


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
        cause = as_typed(error) if told else full_disk_line(error) or worker_line(error) or as_typed(error)
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

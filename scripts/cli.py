"""What every command has in common: errors in one line, exit codes, and help that shows defaults."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from ldm.util import InputError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions at import


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option's default and keeps the description's line breaks."""


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser in the house style; it refuses abbreviated options."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def run(main: Callable[[], int | None], errors: tuple[type[Exception], ...] = ()) -> None:
    """Runs a command; exit code 2 and one line for bad input, 130 for Ctrl-C.

    Args:
        main: the command; None or 0 is success.
        errors: exceptions, beside ``InputError``, whose message is meant for the user.
    """
    expected: tuple[type[Exception], ...] = (InputError, *errors)
    try:
        code = main() or 0
    except expected as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def flag(text: str) -> bool:
    """``true``/``false`` in the usual spellings, for options such as ``-t true``."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text}: write true or false")
    return value

"""Which other packages' code a configuration may name: those that the user has named, and no others."""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.errors import InputError
from common.schema import one_line

_trusted: tuple[str, ...] = ()


def trust(packages: Sequence[str]) -> None:
    """From now on, configurations may name what these packages hold, beside this project's own classes.

    Raises:
        InputError: not names of packages.
    """
    global _trusted
    for name in packages:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise InputError(f"‹trust› {one_line(name, 80)}: write the name of a package, as for import")
    _trusted = tuple(packages)


def is_trusted(name: str) -> bool:
    """Whether the user has named it, or a package that it is in."""
    return any(name == package or name.startswith((f"{package}.", f"{package}/")) for package in _trusted)

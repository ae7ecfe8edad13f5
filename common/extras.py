"""What some of the commands need beyond the rest: the extras of pyproject.toml."""

from __future__ import annotations

from common.house import PREFIX


def install(extra: str) -> str:
    """What to type for an extra: in a checkout its folder is named, since pip would ask an index for a bare name.

    Args:
        extra: its name in pyproject.toml, such as ``geo``.
    """
    if PREFIX:  # installed: pip knows the name
        return f"pip install 'tisynth[{extra}]'"
    return f"pip install '.[{extra}]' in the folder of this project"

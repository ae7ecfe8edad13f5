"""Lines that a run says once, however many files give rise to them, and however many processes read these."""

from __future__ import annotations

import os
import sys
import threading

_said: set[str] = set()
_saying = threading.Lock()
_aloud = True


def say_once(line: str) -> None:
    """A line on stderr, by the first process of a run, the first time; pools' processes leave it to theirs."""
    with _saying:
        if line in _said:
            return
        _said.add(line)
    if _aloud and all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK")):
        print(line, file=sys.stderr)


def leave_to_parent() -> None:
    """From now on this process, of a pool, says nothing: the one that started it asks what is ``said``, and says it."""
    global _aloud
    _aloud = False


def said() -> frozenset[str]:
    """What ``say_once`` was given, here or in the process that started this one."""
    with _saying:
        return frozenset(_said)

"""Processes that a command starts end with it, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """To be called first in a child: it gets ``number`` when its parent ends, by SIGKILL too (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended meanwhile
            os.kill(os.getpid(), number)


def run_child(command: Sequence[str], **options: Any) -> int:
    """Runs a command to its end and returns its exit code; it ends with this process.

    SIGTERM and SIGINT that this process receives meanwhile are passed on, and obeyed once the child has ended, so that
    it can save. To be called in the main thread, where signals arrive.

    Args:
        command: program and arguments.
        **options: of ``subprocess.Popen``.
    """
    received: list[int] = []
    with subprocess.Popen(command, preexec_fn=_end_with_parent_politely, **options) as child:

        def pass_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            child.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if received:
        os.kill(os.getpid(), received[0])
    return code


def _end_with_parent_politely() -> None:
    end_with_parent(signal.SIGTERM)

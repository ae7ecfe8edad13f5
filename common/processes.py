"""Processes that a command starts end with it, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from types import FrameType, TracebackType
from typing import Any

from common.errors import InputError
from common.said import leave_to_parent

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a forked child should not have to


_WORKER = re.compile(r"DataLoader worker .*?(exited unexpectedly|is killed by signal: [\w ]+)", re.DOTALL)


def worker_line(error: BaseException) -> str | None:
    """What to tell of a data worker that failed or ended; None where the error is another.

    torch gives an error of a worker the worker's traceback as its message, and tells of a worker that was killed by a
    ``RuntimeError``.
    """
    text = str(error)
    if isinstance(error, InputError) and text.startswith("Caught ") and " in DataLoader worker " in text:
        return text.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()
    if isinstance(error, RuntimeError) and (found := _WORKER.search(text)):
        return (
            f"a process that reads items {found[1].strip()}, perhaps for lack of memory; take fewer (num_workers), "
            "and start again"
        )
    return None


def end_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """To be called first in a child: it gets ``number`` when its parent ends, by SIGKILL too (Linux).

    Args:
        number: the signal.
        parent: the parent's process id, where it may have ended before this call.
    """
    if _LIBC is not None:
        parent = parent or os.getppid()
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended meanwhile
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def signals_held(react: Callable[[int], None] | None = None) -> Iterator[list[int]]:
    """Within the block the first SIGTERM or SIGINT only goes into the list that is yielded; obeyed at the block's end.

    So that work can be finished or saved first. A second one of the same kind acts at once. For the main thread.

    Args:
        react: called with the signal's number, in its handler.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # as nohup has it

    def give_back(number: int) -> None:
        handler = before[signal.Signals(number)]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set outside Python

    def hold(number: int, frame: FrameType | None) -> None:
        received.append(number)
        give_back(number)
        if react:
            react(number)

    for number in before:
        signal.signal(number, hold)
    try:
        yield received
    finally:
        for number in before:
            give_back(number)
        if received:
            os.kill(os.getpid(), received[0])


class Children:
    """Commands run as child processes, several at once from threads of a pool; they end with this process.

    A context manager for the main thread, where signals arrive: SIGTERM and SIGINT are passed on to all children, and
    obeyed once those have ended, so that they can save.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[Any]] = set()
        self._stopped: list[int] = []
        self._signals = signals_held(self.stop)

    def __enter__(self) -> Children:
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, trace)

    def run(self, command: Sequence[str], **options: Any) -> int:
        """Runs a command to its end.

        Args:
            command: program and arguments.
            **options: of ``subprocess.Popen``.

        Returns:
            Its exit code, or minus the number of the signal that ended it; after ``stop`` nothing is started.
        """
        if self._stopped:
            return -self._stopped[0]
        # A child is told of its parent's end when the thread that started it ends: a pool's threads outlive theirs.
        with subprocess.Popen(command, preexec_fn=partial(_start_child, os.getpid()), **options) as child:
            self._running.add(child)
            try:
                if self._stopped:  # meanwhile
                    child.send_signal(self._stopped[0])
                return child.wait()
            except BaseException:
                child.kill()
                raise
            finally:
                self._running.discard(child)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to all that run, and starts no other."""
        self._stopped.append(number)
        for child in list(self._running):
            child.send_signal(number)


def _start_child(parent: int) -> None:
    os.setpgrp()  # Ctrl-C reaches it through its parent alone, once
    end_with_parent(signal.SIGTERM, parent)


def bounded(workers: int, tasks: int | None = None) -> int:
    """Number of workers to start: as many as asked for, but no more than there are tasks, or than 4 a core."""
    most = 4 * cores()
    return min(workers, most if tasks is None else min(tasks, most))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def pool(workers: int, tasks: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, and leave Ctrl-C to it.

    Args:
        workers: their number, see ``bounded``.
        tasks: number of tasks, where known.

    Raises:
        InputError: a worker was killed.
    """
    count = max(1, bounded(workers, tasks))
    with ProcessPoolExecutor(count, get_context("fork"), _start_worker, (os.getpid(),)) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {count} worker processes was killed (is memory short?); start the same command "
                "again, with fewer --num-workers"
            ) from error
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(parent: int) -> None:
    leave_to_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL, parent)


def main(argv: Sequence[str]) -> None:
    """``python -m common.processes PARENT COMMAND ...``: for shell scripts, becomes a command that ends with them.

    Args:
        argv: the script's process id (``$BASHPID``), program and arguments.
    """
    end_with_parent(signal.SIGTERM, int(argv[0]))
    os.execvp(argv[1], list(argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])

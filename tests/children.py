"""Work in forked processes, which find the libraries imported; that takes seconds in those that are started."""

from __future__ import annotations

import logging
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.conftest import ROOT


def start_child(work: Callable[[], object], session: bool = False) -> int:
    """Forks a process that runs ``work``; its number. With ``session``, it leads a session of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if session:
                os.setsid()
            torch.set_num_threads(1)  # the parent's threads are not here
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a command finds it; other tests may have changed it
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def in_child(work: Callable[[], object]) -> int:
    """Runs ``work`` in a forked process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(start_child(work), 0)[1])


def in_processes(count: int, work: Callable[[], object]) -> list[int]:
    """Runs ``work`` in ``count`` processes that find one another as those of torchrun do; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}

    def started(rank: int) -> None:
        os.environ.update({key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()})
        work()

    children = [start_child(partial(started, rank)) for rank in range(count)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def run_command(name: str, *words: object) -> None:
    """Runs a command of ``scripts`` in this process, which ends with it, as ``python -m`` would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])  # of processes that it starts
    logging.getLogger().handlers.clear()  # pytest's: the command finds none, and sets its own
    sys.argv = [name, *map(str, words)]
    runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)


class Child:
    """A forked process in a session of its own.

    Args:
        log: file for what it prints.
        work: what it does.
    """

    def __init__(self, log: Path, work: Callable[[], object]) -> None:
        def logged() -> None:
            with log.open("ab") as file:
                for number in (1, 2):
                    os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            work()

        self.log, self.pid = log, start_child(logged, session=True)
        self.code: int | None = None

    def ended(self) -> bool:
        """Whether it is no longer running; ``code`` is its exit code then, or minus the signal that ended it."""
        if self.code is None:
            child, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if child else None
        return self.code is not None

    def wait(self, seconds: float = 200) -> int:
        """Its exit code; a process that takes longer is killed."""
        self.runs_until(lambda: False, seconds)
        if self.code is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise TimeoutError(f"still running after {seconds} s: {self.said()[-2000:]}")
        return self.code

    def runs_until(self, happened: Callable[[], object], seconds: float = 120) -> None:
        """Returns as soon as something has happened, the process has ended, or this takes too long."""
        until = time.monotonic() + seconds
        while not happened() and not self.ended() and time.monotonic() < until:
            time.sleep(0.01)

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text()


class Command(Child):
    """A command of ``scripts`` in such a process.

    Args:
        log: file for what it prints.
        name: of the command.
        words: its command line.
        prepare: called in the process before the command.
    """

    def __init__(self, log: Path, name: str, *words: object, prepare: Callable[[], object] = lambda: None) -> None:
        super().__init__(log, lambda: (prepare(), run_command(name, *words)))

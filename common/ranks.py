"""The processes that one launcher (torchrun) started: who does what, and where they meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the process that speaks for all that one launcher started."""
    return int(os.environ.get("RANK", 0)) == 0


def _distributed() -> Any:
    from torch import distributed  # takes seconds, which one process alone need not wait

    return distributed


class Ranks:
    """This process and the others; one where there was no launcher. They meet through messages on the CPU."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        if self.size > 1 and not _distributed().is_initialized():
            _distributed().init_process_group("gloo", timeout=timedelta(days=7))  # one may be done long before another

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Returns once all processes have come here."""
        if self.size > 1:
            _distributed().barrier()

    def once(self, work: Callable[[], Any]) -> Any:
        """The first process's result of ``work``; bad input found there ends the others silently."""
        if self.size == 1:
            return work()
        result: list[Any] = [None, False]
        error = None
        if self.rank == 0:
            try:
                result[0] = work()
            except ValueError as caught:
                error, result[1] = caught, True
        _distributed().broadcast_object_list(result)
        if error:
            raise error
        if result[1]:
            sys.exit(2)
        return result[0]

    @contextmanager
    def first_holds(self, *locks: AbstractContextManager[Any]) -> Iterator[None]:
        """The first process holds these locks for all, until all are done."""
        with ExitStack() as held:
            self.once(lambda: [held.enter_context(lock) for lock in locks] and None)
            yield
            self.wait()

"""yapf's cache of grammars, written whole: mmengine imports yapf, and often several processes do so at once."""

from __future__ import annotations

import pickle
from typing import Any


def write_grammars_whole() -> None:
    """Lets yapf's grammars appear in the user's cache whole or not at all; to be called before mmengine is imported.

    yapf 0.43 gives the file its name before it is flushed, so that a second process (another rank, another training, on
    a machine where yapf has never run) reads half a pickle and ends with ``EOFError: Ran out of input``.
    """
    from yapf_third_party._ylib2to3.pgen2.grammar import Grammar

    from common.files import atomic_path

    def dump(self: Any, filename: str) -> None:
        with atomic_path(filename) as path:
            path.write_bytes(pickle.dumps(self.__dict__, pickle.HIGHEST_PROTOCOL))

    Grammar.dump = dump

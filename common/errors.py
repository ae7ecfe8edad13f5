"""The one error that a user is meant to read."""

from __future__ import annotations

import re
from collections.abc import Callable

_FIELD = re.compile(r"‹(\w+)›")


def spelled(text: str, name: Callable[[str], str] = str) -> str:
    """A text in which fields of options (``‹batch_size›``) stand as its reader knows them.

    Args:
        text: a message, or a part of one.
        name: a field's name as the reader writes it; as in Python by default.
    """
    return _FIELD.sub(lambda match: name(match[1]), text)


class InputError(ValueError):
    """Something the user gave is wrong. The message names file, line and field and says what to do.

    A field of a command's options is written ``‹batch_size›``: who calls from Python reads ``batch_size``, who types
    the command reads ``--batch-size``. Commands print the message in one line and end with exit code 2.
    """

    def __str__(self) -> str:
        return self.told(str)

    def told(self, name: Callable[[str], str]) -> str:
        """The message, with fields under the names that its reader knows.

        Args:
            name: a field's name as the reader writes it.
        """
        return spelled(super().__str__(), name)

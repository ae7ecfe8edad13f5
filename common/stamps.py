"""What outputs were made from: the contents of files, hashed once, and again only where a file was touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.errors import InputError
from common.files import digest, write_json
from common.schema import Schema, read_json

_State = Annotated[list[int], Field(min_length=4, max_length=4)]


class _Seen(Schema):
    """The cache: state (size, times of contents and of status, inode) and SHA-256 of files by path."""

    states: dict[str, _State]
    hashes: dict[str, str]


class Contents:
    """Hashes of files' contents, kept in a cache file.

    A file is read again when its size, its inode or one of its times differs: a change that sets back the time of its
    contents (``cp -p``, ``os.utime``) is noticed, and a copy of the same bytes is the same.

    Args:
        cache: JSON file; one that is not there or damaged is made again.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        try:
            seen = read_json(cache, _Seen)
        except InputError:
            seen = _Seen(states={}, hashes={})
        self._states, self._hashes = dict(seen.states), dict(seen.hashes)

    def of(self, path: Path) -> str:
        """SHA-256 of a file.

        Raises:
            InputError: it cannot be read.
        """
        try:
            name = str(path.resolve())
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            if self._states.get(name) != state or name not in self._hashes:
                self._states[name], self._hashes[name] = state, digest(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        return self._hashes[name]

    def all(self, paths: Iterable[Path]) -> str:
        """SHA-256 of several files, by their names without folders and contents, in the order given."""
        return digest([[path.name, self.of(path)] for path in paths])

    def save(self) -> None:
        """Writes the cache."""
        write_json({"states": self._states, "hashes": self._hashes}, self.cache, indent=None)


def changed(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Names of what differs between two stamps."""
    return [name for name in {**now, **before} if before.get(name) != now.get(name)]

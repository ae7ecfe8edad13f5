"""Journals: what a command has done so far, one JSON line an item, so that it can stop at any moment and go on."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from io import BufferedRandom
from pathlib import Path
from typing import Any, Generic, TypeVar

from common.errors import InputError
from common.files import atomic_path
from common.schema import Schema, parse, parse_json


class Record(Schema):
    """Base of a journal's lines: an item's ``name``, and what else a subclass says of it."""

    name: str


R = TypeVar("R", bound=Record)


class Journal(Generic[R]):
    """Records of one kind: ``<folder>/<kind>.jsonl``, and ``<kind>.<part>.jsonl`` of each process that adds some.

    A line that a kill or a full disk cut off is left out: its item counts as not done. Anything else that is not as the
    schema says is refused, since guessing what it was could go wrong without a word.

    Args:
        folder: where the files are; made by the first ``append``.
        kind: what the files' names begin with.
        schema: of a line.
        sealed: whether lines carry a checksum, for numbers that nobody has a reason to edit.
        remedy: what to do about a damaged file, ``{}`` standing for its name.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        schema: type[R],
        *,
        sealed: bool = False,
        remedy: str = "remove {}, it will be made again",
    ) -> None:
        self.folder, self.kind, self.schema, self.sealed, self.remedy = folder, kind, schema, sealed, remedy

    def path(self, part: str = "") -> Path:
        """The file of one process (``part``: its number, or ``rank`` and its number), or the one of all."""
        return self.folder / f"{self.kind}.{part}.jsonl" if part else self.folder / f"{self.kind}.jsonl"

    def paths(self) -> list[Path]:
        """The files that are there: the one of all first, so that later lines win over what was joined before."""
        ours = re.compile(rf"{re.escape(self.kind)}\.(rank)?\d+\.jsonl")  # not the copy that somebody keeps beside them
        parts = sorted(path for path in self.folder.glob("*.jsonl") if ours.fullmatch(path.name))
        return [path for path in [self.path(), *parts] if path.exists()]

    def append(self, record: R, part: str = "") -> None:
        """Adds a line to the file of one process, on a line of its own whatever a kill left before it."""
        with self._opened(self.path(part)) as file:
            end = file.seek(0, 2)
            if end:
                file.seek(end - 1)
            whole = not end or file.read(1) == b"\n"
            file.write((b"" if whole else b"\n") + self._line(record).encode())

    def _opened(self, path: Path) -> BufferedRandom:
        try:
            return path.open("ab+")
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            return path.open("ab+")

    def read(self) -> dict[str, R]:
        """The records of all files by name; the latest where a name is repeated.

        Raises:
            InputError: a file cannot be read or holds something else; names file and line.
        """
        return {record.name: record for path in self.paths() for record in self._records(path)}

    def merge(self, keep: Callable[[str], bool] = lambda name: True) -> None:
        """Joins the processes' files in the one of all, sorted by name; to be called while nobody appends.

        Args:
            keep: whether the record of a name stays.

        Raises:
            InputError: see ``read``.
        """
        parts, records = self.paths(), self.read()
        if not parts:
            return
        text = "".join(self._line(records[name]) for name in sorted(records) if keep(name))
        if parts == [self.path()] and self.path().read_bytes() == text.encode():
            return  # nothing to write, on a full disk, too
        with atomic_path(self.path()) as path:
            path.write_text(text)
        for part in parts:
            if part != self.path():
                part.unlink()

    def _line(self, record: R) -> str:
        content = record.model_dump(exclude_unset=True)
        return _dumps(sealed(content) if self.sealed else content) + "\n"

    def _records(self, path: Path) -> Iterator[R]:
        remedy = self.remedy.format(path)
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:  # another process has just joined it with the others
            return
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip(b" \t\r"):
                continue
            where = f"{path}: line {number}"
            try:
                content = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                if _cut_off(line):
                    continue
                raise InputError(f"{where}: no JSON; {remedy}") from error
            if self.sealed and isinstance(content, dict):
                content = unsealed({"seal": None, **content}, where, remedy)
            yield parse(content, self.schema, where, remedy)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a checksum in the field ``seal``, for numbers that nobody has a reason to edit."""
    return {**content, "seal": _checksum(content)}


def unsealed(content: Any, where: str, remedy: str = "") -> Any:
    """The content without its checksum, which may be absent.

    Raises:
        InputError: it is another content's; names ``where`` and says what to do.
    """
    if not isinstance(content, dict) or "seal" not in content:
        return content
    rest = {key: value for key, value in content.items() if key != "seal"}
    if content["seal"] != _checksum(rest):
        raise InputError(f"{where}: damaged, its checksum is another{f'; {remedy}' if remedy else ''}")
    return rest


def _dumps(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))


def _checksum(content: Any) -> str:
    return f"{zlib.crc32(_dumps(content).encode()):08x}"


def _cut_off(line: bytes) -> bool:
    """Whether a line that is no JSON begins an object and does not end it."""
    return line.startswith(b"{") and (not line.endswith(b"}") or line.count(b"{") > line.count(b"}"))

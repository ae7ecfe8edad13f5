"""A large file under way: its arrays lie in files beside it, so that a stopped run goes on.

The folder ``.<output>.work`` holds ``settings.json`` (what is made), arrays without headers, and ``progress.npz``,
which is written whole after each row of windows. What is written is never read before progress says so (a step of a
denoising reads one of two latents and writes the other): what a kill left half written is simply written again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.files import atomic_path, write_json
from common.schema import Schema, read_json

SETTINGS, PROGRESS = "settings.json", "progress.npz"
S = TypeVar("S", bound=Schema)


@dataclass(frozen=True)
class Array:
    """An array of the work, in a file of its own."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Progress:
    """How far the work is.

    Attributes:
        step: under way, from 0: a pass over all windows, such as a step of a denoising, or the decoding after it; as
            many as there are once all is done.
        row: of windows, the next one.
        carried: what the rows before left for it, see ``common.windows.Blend``; (0, 0, 0) where it is the first.
    """

    step: int = 0
    row: int = 0
    carried: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))


class Work(Generic[S]):
    """The files of what is under way.

    Args:
        out: the file to be written.
        arrays: by name.
        schema: of what says what is made.
    """

    def __init__(self, out: Path, arrays: Mapping[str, Array], schema: type[S]) -> None:
        self.out, self.folder = out, out.parent / f".{out.name}.work"
        self._arrays, self._schema = dict(arrays), schema

    def room(self) -> tuple[int, int]:
        """Bytes that are lacking for the work and its output, and those that are free."""
        needed = sum(array.bytes for array in self._arrays.values())
        there = sum(path.stat().st_blocks * 512 for path in self.folder.glob("*")) if self.folder.is_dir() else 0
        nearest = next(folder for folder in (self.out.absolute(), *self.out.absolute().parents) if folder.is_dir())
        return max(0, needed - there), shutil.disk_usage(nearest).free

    def begun(self) -> S | None:
        """What is under way there.

        Raises:
            InputError: what says so is damaged.
        """
        path = self.folder / SETTINGS
        return read_json(path, self._schema, f"remove {self.folder}, and start again") if path.exists() else None

    def begin(self, record: S) -> None:
        """Makes the folder and its files, unless they are there; their content is as good as none until progress is.

        Raises:
            OSError: the disk is full: space is taken now, so that no writing fails later.
        """
        self.folder.mkdir(exist_ok=True)
        write_json(record.model_dump(exclude_unset=True), self.folder / SETTINGS)
        for name, array in self._arrays.items():
            handle = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.posix_fallocate(handle, 0, array.bytes)
            finally:
                os.close(handle)

    def open(self, name: str) -> Any:
        """An array of the work, to be read and written: (C, h, w) of latents, (H, W) of the mask, (H, W, bands)."""
        array = self._arrays[name]
        return np.memmap(self.folder / name, dtype=array.dtype, mode="r+", shape=array.shape)

    def give_up(self, name: str) -> None:
        """Frees the room of an array."""
        (self.folder / name).unlink(missing_ok=True)

    def progress(self) -> Progress | None:
        """How far the work is; None before its first arrays are written.

        Raises:
            InputError: what says so is damaged.
        """
        path = self.folder / PROGRESS
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as saved:
                return Progress(int(saved["step"]), int(saved["row"]), saved["carried"])
        except Exception as error:  # zip, numpy and zlib raise whatever they like on broken files
            raise InputError(f"{path}: is damaged; remove {self.folder}, and start again") from error

    def save(self, progress: Progress) -> None:
        """Says how far the work is, whole or not at all; arrays are to be flushed before."""
        with atomic_path(self.folder / PROGRESS) as path, path.open("wb") as file:
            np.savez(file, step=progress.step, row=progress.row, carried=progress.carried)

    def remove(self) -> None:
        """Removes all of it."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

"""What an importer has found: scenes with their masks, wherever those come from, and what the ids mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from common.classes import ClassTable
from common.errors import InputError
from common.images import IGNORE

_ENDS = 1 << 16  # bytes
Size = tuple[int, int]
"""Height and width in pixels."""

_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


DRAWN = ("coco", "labelme", "vector")
"""Formats in which an image on which nobody drew is no fault, but one without a mask."""


class Mask(Protocol):
    """Where the class ids of a scene come from."""

    def read(self, size: Size, notes: list[str]) -> NDArray[Any]:
        """Class ids (H, W) uint8: 0..N-1, and 255 where nothing is said.

        Args:
            size: of the scene's image.
            notes: takes a line for what a person should know, such as a polygon that was clipped.

        Raises:
            InputError: there is no such mask, or it does not fit the image.
        """
        ...


@dataclass(frozen=True)
class Scene:
    """An image, and its mask where it has one.

    Attributes:
        name: of the files to be written, without suffix; unique in the data set.
        image: file.
        mask: None for an image without labels.
        split: that its publisher gave it to (train, val or test); None where none is said.
        group: scenes of one group stay together when the data are split; the name by default.
        upright: the mask was drawn on the image as viewers turn it, by its EXIF tag.
    """

    name: str
    image: Path
    mask: Mask | None
    split: str | None = None
    group: str = ""
    upright: bool = False


@dataclass(frozen=True)
class Source:
    """What was found in a folder.

    Attributes:
        format: name of the way in which it is kept.
        evidence: what it was recognized by.
        table: class names, colors, and how mask files are read.
        scenes: in the order of their names.
        notes: lines that a person should read.
    """

    format: str
    evidence: str
    table: ClassTable
    scenes: list[Scene]
    notes: list[str] = field(default_factory=list)


def ends_of(path: Path) -> bytes:
    """The first and last bytes of a file, in which the fields of a JSON show; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(_ENDS)
            file.seek(max(path.stat().st_size - _ENDS, 0))
            return start + file.read(_ENDS)
    except OSError:
        return b""


def background_of(name: str | None, names: Sequence[str]) -> int:
    """Class id of what no shape covers, of the class so named; 255 where none is named.

    Raises:
        InputError: there is no such class.
    """
    if name is None:
        return IGNORE
    if name not in names:
        raise InputError(f"‹background› {name}: is none of the classes {', '.join(names)}")
    return list(names).index(name)


def split_of(word: str | None) -> str | None:
    """The split that a folder or list stands for (``Valid`` -> ``val``); None where it is none."""
    plain = (word or "").lower()
    return next((split for split, words in _SPLITS.items() if plain in words), None)


def unique_names(paths: list[Path], root: Path, stems: list[str] | None = None) -> list[str]:
    """A name for each file: its own without suffix, or with its folders in front where two would be the same.

    Args:
        paths: files below ``root``.
        root: the folder that they were found in.
        stems: in place of the files' own names.
    """
    names = stems or [path.stem for path in paths]
    if len(set(names)) == len(names):
        return list(names)
    folders = [path.parent.relative_to(root).parts if path.is_relative_to(root) else () for path in paths]
    longer = ["_".join((*parts, name)).lower() for parts, name in zip(folders, names, strict=True)]
    if len(set(longer)) == len(longer):
        return longer
    return [f"{name}_{i:05d}" for i, name in enumerate(longer)]

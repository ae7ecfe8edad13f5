"""Files that the filter writes for itself and others: one schema and one reader each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from common.errors import InputError
from common.files import digest, write_json
from common.journal import Journal, Record, unsealed
from common.pairing import Pair
from common.schema import OpenSchema, Schema, load_json, parse, read_json
from post_processing.filter_rule import HISTOGRAM_EDGES

STATE = ".filter"  # below the filtered masks: the settings, and what is done
STATS, REAL_LOSS = "filter_stats.json", "real_loss.json"
BINS = len(HISTOGRAM_EDGES) - 1

Count = Annotated[int, Field(ge=0, lt=2**53)]
Counts = list[Count]
Number = Annotated[float, Field(ge=0)]
Histogram = list[Annotated[Counts, Field(min_length=BINS, max_length=BINS)]]
Checksum = Annotated[int, Field(ge=0, lt=2**32)]
Level = Annotated[int, Field(ge=0, le=255)]
Label = Annotated[int, Field(ge=-1, le=255)]
LabelOfId = Annotated[list[Label], Field(min_length=256, max_length=256)]


class Settings(Schema):
    """What masks in a folder were filtered with, each by name."""

    settings: dict[str, str | float]


class RealRecord(Record):
    """A real image: what it is made of, and summed loss and pixels of each class; some have the losses' histogram."""

    stamp: str
    sums: list[Number]
    pixels: Counts
    histogram: Histogram | None


class FilteredRecord(Record):
    """A synthesized image: what its result is made of, the files that were written, total and kept pixels a class.

    ``losses``: checksum of the losses that were saved, if they were. ``relabeled``: pixels that were given each class.
    ``weights``: summed weight of each class's pixels.
    """

    stamp: str
    files: list[int]
    losses: Checksum | None = None
    total: Counts
    kept: Counts
    histogram: Histogram | None
    relabeled: Counts | None = None
    weights: list[Number] | None = None

    @model_validator(mode="after")
    def _kept_of_total(self) -> FilteredRecord:
        if len(self.kept) != len(self.total) or any(k > t for k, t in zip(self.kept, self.total, strict=True)):
            raise ValueError("more pixels kept than there are")
        return self


class RealLoss(Schema):
    """``real_loss.json`` in the folder of ``save_loss``: what the real images showed.

    ``label_of_id``: see ``LabelTable``; none where ids are class ids.
    ``mask_colors``: red, green, blue and id, where mask files may be in colors.
    ``checksums``: of the losses of each image.
    """

    classes: list[str] = Field(min_length=2, max_length=255)
    mean_loss: list[Number | None]
    pixels: Counts
    histogram: Histogram
    label_of_id: LabelOfId | None = None
    mask_colors: list[Annotated[list[Level], Field(min_length=4, max_length=4)]] | None = None
    checksums: dict[str, Checksum] | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> RealLoss:
        count = len(self.classes)
        if len(set(self.classes)) < count or any(not name.strip() for name in self.classes):
            raise ValueError("two classes have one name, or one has none")
        if not len(self.mean_loss) == len(self.pixels) == len(self.histogram) == count:
            raise ValueError(f"must have one entry for each of {count} classes in each list")
        if any((mean is None) != (pixels == 0) for mean, pixels in zip(self.mean_loss, self.pixels, strict=True)):
            raise ValueError("a class has a mean loss if and only if it has pixels")
        return self

    def means(self) -> NDArray[Any]:
        """Mean loss of each class, float64 (C,); NaN for a class without real pixels."""
        return np.array([np.nan if value is None else value for value in self.mean_loss], dtype=np.float64)


def sum_of_histograms(records: Iterable[RealRecord | FilteredRecord], num_classes: int) -> NDArray[Any]:
    """Of those records that have one (C, bins)."""
    found = [np.array(record.histogram) for record in records if record.histogram]
    return np.sum(found, axis=0) if found else np.zeros((num_classes, BINS), dtype=np.int64)


class LabelTable(Schema):
    """Which class each id in masks is (255: to ignore, -1: may not be)."""

    of_id: LabelOfId


class FilterStats(OpenSchema):
    """What re-sampling reads of ``filter_stats.json``; ``labels``: a ``LabelTable``, none where ids are class ids."""

    per_class: dict[str, Any] = Field(min_length=1)
    labels: dict[str, Any] | None = None


def read_real_loss(folder: Path) -> RealLoss:
    """Reads ``real_loss.json``.

    Raises:
        InputError: it is not there, or not what the filter writes.
    """
    path = folder / REAL_LOSS
    if not path.is_file():
        raise InputError(f"‹from_loss› {folder}: no {REAL_LOSS}; name a folder that ‹save_loss› finished")
    remedy = f"remove {path}, and make it again with ‹save_loss›"
    return parse(unsealed(load_json(path, remedy), str(path), remedy), RealLoss, str(path), remedy)


def label_of_id(folder: Path) -> tuple[int, ...] | None:
    """Which class each of the 256 ids in a folder of filtered masks is, as the filter's statistics say.

    255: to ignore, -1: may not be. None where ids are class ids, or nothing is said.

    Raises:
        InputError: the statistics are damaged.
    """
    found, remedy = _stats(folder), _REMEDY
    if found is None or found.labels is None:
        return None
    where = f"{folder / STATS}, field labels"
    return tuple(parse(unsealed(found.labels, where, remedy), LabelTable, where, remedy).of_id)


def classes_of(folder: Path) -> list[str] | None:
    """Names of the classes that a folder's masks were filtered with; None where the filter said nothing there.

    Raises:
        InputError: the statistics are damaged.
    """
    found = _stats(folder)
    return None if found is None else list(found.per_class)


_REMEDY = f"start filter.sh again, it makes {STATS} again"


def _stats(folder: Path) -> FilterStats | None:
    path = folder / STATS
    return read_json(path, FilterStats, _REMEDY) if path.is_file() else None


def _as_field(key: str) -> str:
    """A setting's name for messages: options are in these files as they were typed first, ``--tolerance-margin``."""
    return f"‹{key[2:].replace('-', '_')}›" if key.startswith("--") else key


class State:
    """What is done in an output folder, and with which settings."""

    def __init__(self, out: Path, settings: dict[str, str | float]) -> None:
        self.folder, self.settings = out / STATE, settings
        self.real = Journal(self.folder, "real", RealRecord, sealed=True)
        self.filtered = Journal(self.folder, "syn", FilteredRecord, sealed=True)

    def open(self) -> None:
        """To be called by the only writer. Clears what a killed run left half written.

        Raises:
            InputError: the folder belongs to a run with other settings, or its state is damaged.
        """
        out, path = self.folder.parent, self.folder / "settings.json"
        for left_over in [*out.glob(".*.tmp.*"), *self.folder.glob(".*.tmp.*")]:  # of a killed run
            left_over.unlink()
        if path.is_file():
            found = read_json(path, Settings, f"remove {path}, it will be made again").settings
            # one that is named on one side alone differs, too: the usual treatment is not named
            names = {**self.settings, **found}
            if changed := [_as_field(key) for key in names if found.get(key) != self.settings.get(key)]:
                raise InputError(
                    f"‹filtered_mask_path› {out}: holds masks filtered with another {', '.join(changed)}; "
                    "name another folder or remove this one"
                )
        for journal in (self.real, self.filtered):  # of however many processes: what is added now comes after it
            journal.merge()
        write_json(Settings(settings=self.settings).model_dump(), path)

    def stamp(self, pair: Pair, *others: Any) -> str:
        """What a result is made of: the settings, the files by size and time, and ``others``."""
        return digest(self.settings, file_stamp(pair.image, pair.mask), *others)


def file_stamp(*paths: Path) -> list[int]:
    """Sizes and times of files: another one of the same name has others; [] where one is not there."""
    try:
        return [value for path in paths for value in (path.stat().st_size, path.stat().st_mtime_ns)]
    except FileNotFoundError:
        return []

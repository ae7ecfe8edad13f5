"""What a folder of synthesized images says of each: one JSON line an image, however many processes write there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict

from common.errors import InputError
from common.files import flock, name_fault
from common.journal import Journal, Record
from common.pairing import IMAGE_SUFFIXES

RECORDS = "samples.jsonl"
NO_SEGMENTOR = "none"
LOCK, ACTIVE = ".samples.lock", ".active.lock"  # hidden, empty, and left behind: removing a lock would be a race


def _file_name(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(f"is no name of an image: {fault}")
    return name


class Sample(Record):
    """A line: an image's name, and what it was made of; see ``cldm.synthesis.planning.Recipe``.

    Other versions' fields are kept.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)

    name: Annotated[str, AfterValidator(_file_name)]
    seed: int | None = None
    prompt: str = ""
    prompt_read: str | None = None
    mask: str | None = None
    mask_hash: str | None = None
    reference: str | None = None
    reference_hash: str | None = None
    start: str | None = None  # the image that was painted over
    start_hash: str | None = None
    reference_fit: str | None = None
    reference_latent: str = "mode"  # what records mean that were written before there was a choice
    hint_encoding: str | None = None
    height: int | None = None
    width: int | None = None
    format: str | None = None
    quality: int | None = None
    bands: dict[str, Any] | None = None  # what is stated of the model's, see ``common.bands.Bands``; None: 8-bit RGB
    sampler: str | None = None
    steps: int | None = None
    spacing: str | None = None
    scale: float | None = None
    mask_scale: float = 1.0  # records that say none are older than these two
    reference_scale: float = 1.0
    guidance_rescale: float = 0.0
    eta: float | None = None
    start_strength: float = 1.0  # records that say none are older
    preset: str = "published"  # the name alone: what it sets is said by the other fields
    guidance_interval: list[float] = [0.0, 1.0]  # from here on, records that say none are older
    mask_strength: float = 1.0
    reference_strength: float = 1.0
    mask_span: list[float] = [0.0, 1.0]
    reference_span: list[float] = [0.0, 1.0]
    reuse_encoder: str = "none"
    key_steps: list[int] = []
    rectify: str | None = None  # the segmentor's weights, by name
    rectify_hash: str = NO_SEGMENTOR  # as in records older than these fields
    rectify_config_hash: str = NO_SEGMENTOR
    rectify_steps: int = 0
    rectify_scale: float = 0.0
    judge: str | None = None
    judge_hash: str = NO_SEGMENTOR
    judge_config_hash: str = NO_SEGMENTOR
    candidates: int = 1
    retry: int = 0
    retry_below: float = 0.0
    candidate: int = 0  # which one was kept
    scores: list[float] = []
    checkpoint: str | None = None
    checkpoint_hash: str | None = None
    use_ema: bool | None = None
    config: str | None = None
    config_hash: str | None = None
    lora: list[str] = []
    lora_hash: list[str] = []
    lora_scale: list[float] = []
    precision: str | None = None
    quantize: str = "none"  # records that say none are older


def _journal(outdir: Path) -> Journal[Sample]:
    return Journal(outdir, "samples", Sample, remedy="remove this line, and make its image again")


@contextmanager
def writing(outdir: Path) -> Iterator[None]:
    """Says in one line that the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"‹outdir› {outdir}: cannot write there ({reason}); what is there is whole: make room or take "
            "another folder, and start again"
        ) from error


@contextmanager
def publishing(outdir: Path) -> Iterator[None]:
    """Holds the folder's lock: only one process at a time adds an image and its record, or joins the records."""
    with flock(outdir / LOCK, fcntl.LOCK_EX):
        yield


@contextmanager
def working_in(outdir: Path) -> Iterator[None]:
    """Encloses a run in this folder; before and after it, tidies up and joins the processes' records.

    Every run holds a shared lock while it works. Who gets that lock for itself alone knows that no other run is there,
    so that temporary files can only be those of a killed one, and removes them.
    """
    with writing(outdir), flock(outdir / ACTIVE, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        if alone:
            for path in outdir.glob(".*.tmp.*"):
                path.unlink(missing_ok=True)
    with flock(outdir / ACTIVE, fcntl.LOCK_SH):
        with writing(outdir):
            merge_records(outdir)
        yield
        with writing(outdir):
            merge_records(outdir)


def append_record(outdir: Path, record: Sample, rank: int = 0) -> None:
    """Adds a line to this process's records; to be called within ``publishing``."""
    _journal(outdir).append(record, f"rank{rank}" if rank else "")


def read_records(outdir: Path) -> dict[str, Sample]:
    """Records by name, of all processes; the latest where repeated.

    Raises:
        InputError: a line is damaged, other than by a kill.
    """
    return _journal(outdir).read()


def records(outdir: Path) -> dict[str, dict[str, Any]]:
    """``read_records`` as plain values, for packages that know nothing of synthesis."""
    return {name: record.model_dump() for name, record in read_records(outdir).items()}


def merge_records(outdir: Path) -> None:
    """Joins the processes' records in ``samples.jsonl``: one an image, in order of names, none without its image."""
    with publishing(outdir):
        there = images_in(outdir)
        _journal(outdir).merge(there.__contains__)


def images_in(outdir: Path) -> dict[str, list[str]]:
    """Names of image files by name without suffix."""
    found: dict[str, list[str]] = {}
    for entry in os.scandir(outdir):
        path = Path(entry.name)
        if path.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith("."):
            found.setdefault(path.stem, []).append(entry.name)
    return {stem: sorted(names) for stem, names in found.items()}

"""What a folder of synthesised images says of each: one JSON line an image, however many processes write there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.files import atomic_path, flock

RECORDS = "samples.jsonl"
LOCK, ACTIVE = ".samples.lock", ".active.lock"  # hidden, empty, and left behind: removing a lock would be a race
FORMATS = (".jpg", ".png")


@contextmanager
def publishing(outdir: Path) -> Iterator[None]:
    """While one process adds an image and its record, or joins the records, no other does."""
    with flock(outdir / LOCK, fcntl.LOCK_EX):
        yield


@contextmanager
def working_in(outdir: Path) -> Iterator[None]:
    """For the whole of a run. Nobody else working there, temporary files can only be those of a killed run: removed."""
    with flock(outdir / ACTIVE, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        if alone:
            for path in outdir.glob(".*.tmp.*"):
                path.unlink(missing_ok=True)
    with flock(outdir / ACTIVE, fcntl.LOCK_SH):
        yield


def append_record(outdir: Path, record: dict[str, Any], rank: int = 0) -> None:
    """Adds a line to this process's records; to be called within ``publishing``."""
    with (outdir / (f"samples.rank{rank}.jsonl" if rank else RECORDS)).open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_records(outdir: Path) -> dict[str, dict[str, Any]]:
    """Records by name, of all processes; the latest where repeated."""
    records: dict[str, dict[str, Any]] = {}
    for part in sorted(outdir.glob("samples*.jsonl")):
        try:
            lines = part.read_text(errors="replace").splitlines()
        except FileNotFoundError:  # another command has just joined it with the others
            continue
        for line in lines:
            with suppress(json.JSONDecodeError, KeyError, TypeError):  # a line cut off by a kill
                record = json.loads(line)
                records[record["name"]] = record
    return records


def merge_records(outdir: Path) -> None:
    """Joins the processes' records in ``samples.jsonl``: one an image, in order of names, none without its image."""
    with publishing(outdir):
        records, parts = read_records(outdir), list(outdir.glob("samples*.jsonl"))
        there = {Path(entry.name).stem for entry in os.scandir(outdir) if Path(entry.name).suffix in FORMATS}
        if not records:
            return
        with atomic_path(outdir / RECORDS) as path:
            path.write_text("".join(json.dumps(records[name]) + "\n" for name in sorted(records) if name in there))
        for part in parts:
            if part.name != RECORDS:
                part.unlink()

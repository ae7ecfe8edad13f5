"""What a run has done so far, one JSON line an item, so that it can stop at any moment and go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_records(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """All whole records of a kind, of every process that wrote some, by their field ``name``."""
    return {record["name"]: record for path in sorted(folder.glob(f"{kind}.*.jsonl")) for record in _lines(path)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # broken off when the run was stopped or the disk was full: the item is done again
        if isinstance(record, dict) and "name" in record:
            yield record


class RecordWriter:
    """Appends records to ``<folder>/<kind>.<rank>.jsonl``."""

    def __init__(self, folder: Path, kind: str, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{kind}.{rank}.jsonl"

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record. It starts with the line break, so that a broken line before it does no harm."""
        with self.path.open("a") as file:
            file.write("\n" + json.dumps(record, separators=(",", ":")))

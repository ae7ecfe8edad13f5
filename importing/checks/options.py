"""Options of ``tisynth check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.converters import integer, workers
from common.options import Options, option


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Options):
    """Options of ``check_data``."""

    data: Path = option(
        positional=True, metavar="DATA", help="folder in this project's layout: img_train, label_train ..."
    )
    classes: str | None = option(None, metavar="TABLE", help="class table (default: DATA/classes.json)")
    json: Path | None = option(None, metavar="FILE", help="report to write")
    html: Path | None = option(None, metavar="FILE", help="page to write, with pictures")
    near: int = option(
        6, convert=integer(0, 32), help="of 64 bits of two images' gradients, those that near-copies may differ in"
    )
    num_workers: int | None = option(None, convert=workers, help="threads that read (default: one a core)")
    follow_links: bool = option(False, help="take files outside of DATA that links in it lead to")

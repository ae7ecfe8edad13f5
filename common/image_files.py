"""Image files in folders and below."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.pairing import IMAGE_SUFFIXES
from common.schema import one_line


def find_images(folders: Sequence[Path], option: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All image files in the folders and below, sorted; hidden ones are passed over.

    Raises:
        InputError: no such folder, or no image in one.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{option} {one_line(folder, 1000)}: no such folder")
        here = []
        for path, names, files in os.walk(folder):
            names[:] = sorted(name for name in names if not name.startswith("."))
            seen = sorted(name for name in files if not name.startswith("."))
            here += [Path(path, name) for name in seen if Path(name).suffix.lower() in suffixes]
        if not here:
            raise InputError(f"{option} {one_line(folder, 1000)}: no image in it (files {', '.join(suffixes)})")
        found += here
    return found

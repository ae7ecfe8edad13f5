"""Which format a folder is in: found by what lies there, or as the user says."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import InputError
from common.schema import one_line
from importing.formats.coco import coco_files, read_coco
from importing.formats.folders import files_of, pictures_below, read_folders, two_folders
from importing.formats.labelme import labelme_files, read_labelme
from importing.formats.layouts import LAYOUTS
from importing.formats.vectors import read_vectors, vector_files
from importing.options import ImportOptions
from importing.source import Source


def recognize(options: ImportOptions) -> Source:
    """Reads the data by the format that fits.

    Raises:
        InputError: no format fits, or several do; the message says which.
    """
    root = options.source
    if not root.exists():
        raise InputError(f"‹source› {root}: no such folder or file")
    if root.is_file() and root.suffix.lower() == ".zip":
        raise InputError(f"‹source› {root}: is an archive; unpack it, and name its folder")
    if root.is_file() and root.suffix.lower() != ".json":
        raise InputError(f"‹source› {root}: is a file, no folder; only COCO's JSON is read from a file")
    if (root / "annotations.xml").is_file() and options.format is None:
        raise InputError(f"{root / 'annotations.xml'}: is CVAT's XML; export as Segmentation mask 1.1, or as COCO 1.0")
    readers = {}
    if options.format in (None, "coco") and (found := coco_files(root)):
        readers["coco"] = lambda: read_coco(found, root, options)
    if options.format in (None, "labelme") and (jsons := labelme_files(root)):
        readers["labelme"] = lambda: read_labelme(jsons, root, options)
    if options.format in (None, "vector") and (maps := vector_files(root, options)):
        readers["vector"] = lambda: read_vectors(maps, root, options)
    masks = options.masks if options.masks is not None and not options.masks.is_file() else None
    if masks is not None and options.format in (None, "folders") and "vector" not in readers:
        files = two_folders(options.images or root, masks)
        readers = {"folders": lambda: read_folders(files, root, options)}
    elif root.is_dir():
        pictures = pictures_below(root)
        for layout in LAYOUTS:
            usual = layout.name == "folders" and set(readers) - {"vector"}  # what fits anything is the last choice
            if options.format not in (None, layout.name) or usual:
                continue
            if own := files_of(layout, root, pictures, options.images):
                readers[layout.name] = lambda own=own: read_folders(own, root, options)  # type: ignore[misc]
    for special, general in (("cvat", "voc"), ("roboflow-masks", "deepglobe")):
        if special in readers:
            readers.pop(general, None)
    if not readers:
        raise InputError(f"‹source› {root}: {_nothing(root, options)}")
    if len(readers) > 1:
        raise InputError(f"‹source› {root}: {', '.join(readers)} fit; say which with ‹format›")
    return next(iter(readers.values()))()


def _nothing(root: Path, options: ImportOptions) -> str:
    """Why nothing fits, with what was seen."""
    if options.format is not None:
        return f"holds nothing in the format {options.format}; docs/your_data.md shows what lies where"
    seen = sorted(path.name for path in root.iterdir())[:6] if root.is_dir() else [root.name]
    return (
        f"is in no format that is known here (it holds {one_line(json.dumps(seen), 200)}); name folders of images and "
        "masks with ‹images› and ‹masks›, or see docs/your_data.md"
    )

"""What a comparison writes: comparison.json, and the page with its gallery and the reports of other commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.classes import ClassTable
from common.errors import InputError
from common.files import atomic_path, write_json
from common.images import IGNORE, read_image
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files, mask_name
from evaluation.comparison import SCORES, check_runs, check_spread, compare
from evaluation.figures import classes_figure, seeds_figure
from evaluation.page import gallery, page


def read_svg(path: Path) -> bytes:
    """A figure that another command wrote.

    Raises:
        InputError: it is none.
    """
    content = path.read_bytes()
    if b"<svg" not in content:
        raise InputError(f"{path}: holds no figure; remove it, or make it again with the command that wrote it")
    return content


def gallery_of(
    images: Path,
    masks: Path,
    filtered: Path | None,
    count: int,
    table: ClassTable,
    records: Mapping[str, Mapping[str, Any]],
    data_root: str | None,
) -> str:
    """A gallery of synthesized images, evenly spread over all, with their masks, references and filtered masks.

    Args:
        images: the synthesized images.
        masks: the masks that they were synthesized from.
        filtered: masks that filter.sh wrote.
        count: number of images.
        table: names and colors of the classes.
        records: what synthesis recorded of an image, by name: ``reference`` and ``prompt``.
        data_root: folder that recorded references are in.

    Raises:
        InputError: no images, or a damaged one.
    """

    def ids(path: Path) -> NDArray[Any]:
        found = table.labels.table[table.labels.file_ids(path)]
        return np.where(found < 0, IGNORE, found).astype(np.uint8)

    found = list_files(images, IMAGE_SUFFIXES, "‹syn_img_path›")
    known = list_files(masks, MASK_SUFFIXES, "‹mask_path›")
    items = []
    for name in list(found)[:: max(1, -(-len(found) // count))]:
        record = records.get(name, {})
        mask = known.get(name) or known.get(mask_name(name))
        cleaned = filtered / f"{name}.png" if filtered else None
        reference = _recorded_file(record.get("reference"), data_root)
        items.append(
            {
                "name": name,
                "caption": record.get("prompt") or "",
                "mask": ids(mask) if mask else None,
                "reference": Image.fromarray(read_image(reference)) if reference else None,
                "image": Image.fromarray(read_image(found[name])),
                "filtered": ids(cleaned) if cleaned and cleaned.is_file() else None,
            }
        )
    return gallery(items, table.names, table.palette)


def _recorded_file(name: object, root: str | None) -> Path | None:
    """A recorded file, as it is or below the data set's folder; None where it is not there."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    return next((path for path in (Path(name), Path(root or ".", name)) if path.is_file()), None)


def write_comparison(
    out: Path,
    runs: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]],
    facts: Mapping[str, str],
    made_from: Mapping[str, Any],
    pictures: str,
    reports: Mapping[str, bytes],
) -> dict[str, dict[str, Any]]:
    """Writes comparison.json and comparison.html.

    Args:
        out: folder.
        runs: metrics by kind, seed and split.
        facts: options, shown as a table.
        made_from: what trainings and tests were made from.
        pictures: see ``gallery_of``.
        reports: further figures (SVG) by title.

    Returns:
        The comparisons by split, see ``compare``.

    Raises:
        InputError: see ``check_runs`` and ``check_spread``.
    """
    results, plots = {}, {}
    for split in runs["baseline"][0]:
        baseline, joint = ([run[split] for run in runs[kind]] for kind in ("baseline", "joint"))
        check_runs(split, baseline, joint)
        results[split] = compare(baseline, joint)
        check_spread(split, results[split])
        plots[split] = [seeds_figure(baseline, joint, SCORES), classes_figure(results[split]["classes"])]
    write_json(
        {"options": dict(facts), "settings": dict(made_from), "results": results, "runs": runs}, out / "comparison.json"
    )
    with atomic_path(out / "comparison.html") as path:
        path.write_text(page(results, plots, facts, pictures, reports), encoding="utf-8", errors="xmlcharrefreplace")
    return results

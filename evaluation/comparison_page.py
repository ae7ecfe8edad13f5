"""What a comparison writes: comparison.json, and the page with its gallery and the reports of other commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.bands import Bands, read_painted, read_picture
from common.classes import ClassTable
from common.errors import InputError
from common.files import atomic_path, write_json
from common.images import IGNORE
from common.metrics_file import Metrics
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files, mask_name
from evaluation.comparison import SCORES, check_runs, check_spread, compare_arms, paired_difference
from evaluation.figures import arms_figure, classes_figure, curve_figure, seeds_figure
from evaluation.page import gallery, page
from evaluation.recipes import REAL, Recipe


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
    bands: Bands | None = None,
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
        bands: what is stated of the images' bands; None for three of 8 bits.

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
                "reference": Image.fromarray(read_picture(reference, bands)) if reference else None,
                "image": Image.fromarray(read_painted(found[name], bands)),
                "filtered": ids(cleaned) if cleaned and cleaned.is_file() else None,
            }
        )
    return gallery(items, table.names, table.palette)


def _recorded_file(name: object, root: str | None) -> Path | None:
    """A recorded file, as it is or below the data set's folder; None where it is not there."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    return next((path for path in (Path(name), Path(root or ".", name)) if path.is_file()), None)


@dataclass(frozen=True)
class Compared:
    """What a comparison found, and what its page says beside it.

    Attributes:
        title: of the page.
        runs: metrics by kind, seed and split.
        arms: what is compared with the real images alone, and the iterations of all of its trainings.
        curves: by what varies (``amount``, ``share``): its values, and the arm with synthesized images of each.
        facts: options, shown as a table.
        made_from: what trainings and tests were made from.
        pictures: see ``gallery_of``.
        reports: further figures (SVG) by title.
    """

    title: str
    runs: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]]
    arms: Sequence[tuple[Recipe, int]]
    curves: Mapping[str, Sequence[tuple[float, Recipe]]]
    facts: Mapping[str, str]
    made_from: Mapping[str, Any]
    pictures: str
    reports: Mapping[str, bytes]

    def of(self, recipe: Recipe, split: str) -> list[Mapping[str, Any]]:
        """An arm's metrics on a test set, one a seed, of the classes that its masks show."""
        return [Metrics(**run[split]).of_shown().model_dump() for run in self.runs[recipe.kind]]


def write_comparison(out: Path, found: Compared) -> dict[str, dict[str, Any]]:
    """Writes comparison.json and comparison.html.

    Args:
        out: folder.
        found: what to write.

    Returns:
        By split: ``arms`` by name (see ``compare_arms``, and ``iterations``, ``free``), ``curves`` by what varies (a
        list of ``value`` and what ``paired_difference`` gives for mIoU); ``best``: the names of the best ``free`` trick
        and of the best arm with synthesized images (``painted``), and the paired difference of their mIoU; and what
        ``compare`` gives of the arm joint, if there is one.

    Raises:
        InputError: see ``check_runs`` and ``check_spread``.
    """
    results, plots = {}, {}
    for split in found.runs["baseline"][0]:
        baseline = found.of(REAL, split)
        runs = {recipe.name: found.of(recipe, split) for recipe, _ in found.arms}
        for metrics in runs.values():
            check_runs(split, baseline, metrics)
        arms = compare_arms(baseline, runs)
        for recipe, iterations in found.arms:
            check_spread(split, arms[recipe.name])
            arms[recipe.name] |= {"iterations": iterations, "free": recipe.free}
        curves = {
            varied: [{"value": value, **_point(found, recipe, split)} for value, recipe in points]
            for varied, points in found.curves.items()
        }
        results[split] = {**arms.get("joint", {}), "arms": arms, "curves": curves, "best": _best(found, arms, split)}
        if len(arms) == 1:
            ((name, metrics),) = runs.items()
            plots[split] = [seeds_figure(baseline, metrics, SCORES, name), classes_figure(arms[name]["classes"], name)]
        else:
            plots[split] = [arms_figure(arms)]
        plots[split] += [curve_figure(varied, points) for varied, points in curves.items()]
    content = {"title": found.title, "options": dict(found.facts), "settings": dict(found.made_from)}
    write_json({**content, "results": results, "runs": found.runs}, out / "comparison.json")
    text = page(results, plots, found.facts, found.pictures, found.reports, found.title)
    with atomic_path(out / "comparison.html") as path:
        path.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return results


def _best(found: Compared, arms: Mapping[str, Mapping[str, Any]], split: str) -> dict[str, Any] | None:
    """The best arm with synthesized images against the best free trick; None where one of them is not compared."""

    def best(free: bool) -> Recipe | None:
        recipes = [recipe for recipe, _ in found.arms if recipe.free == free]
        means = [arms[recipe.name]["scores"]["mIoU"]["joint"]["mean"] for recipe in recipes]
        return recipes[int(np.argmax(means))] if recipes else None

    free, painted = best(True), best(False)
    if free is None or painted is None:
        return None
    scores = [[run["mIoU"] for run in found.of(recipe, split)] for recipe in (free, painted)]
    return {"free": free.name, "painted": painted.name, **(paired_difference(*scores) or {})}


def _point(found: Compared, recipe: Recipe, split: str) -> dict[str, Any]:
    """mIoU of an arm of a curve, against the same real images alone.

    Raises:
        InputError: a score is not defined.
    """
    baseline, metrics = found.of(replace(REAL, share=recipe.share), split), found.of(recipe, split)
    check_runs(split, baseline, metrics)
    return paired_difference([run["mIoU"] for run in baseline], [run["mIoU"] for run in metrics]) or {}

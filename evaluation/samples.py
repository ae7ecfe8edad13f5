"""Judging synthesized images without training: what a segmentor finds in them, copies, coverage, FID and KID."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_path, write_json
from common.images import ImageError
from common.pairing import IMAGE_SUFFIXES, Pair, faults_of, list_files, without_faults
from common.scores import confusion, scores
from evaluation.copies import nearest, thumbnail
from evaluation.samples_report import nearest_sheet, samples_figure

SHOWN = 8  # nearest pairs in the picture


@dataclass(frozen=True, eq=False)
class Judge:
    """A segmentor, for those who need not know what it is.

    Attributes:
        classes: C names.
        table: (256,), the label of each id in mask files.
        unscored: the label that scores leave out.
        find: of image and mask files, class ids found (H, W) and the mask's ids (H, W), in the files' order.
    """

    classes: Sequence[str]
    table: NDArray[Any]
    unscored: int
    find: Callable[[Sequence[tuple[Path, Path]]], Iterable[tuple[NDArray[Any], NDArray[Any]]]]


def segmentor_scores(judge: Judge, pairs: Sequence[Pair], kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Scores of all pairs together, and each image's class pixels: ``mask`` and ``found``, int64 (N, C)."""
    count = len(judge.classes)
    total = np.zeros((count + 1, count), dtype=np.int64)
    shown, found = [], []
    results = judge.find([(pair.image, pair.mask) for pair in pairs])
    for prediction, ids in tqdm(results, kind, len(pairs), unit="image"):
        matrix = confusion(prediction, judge.table[ids], count, judge.unscored)
        total += matrix
        shown.append(matrix[:-1].sum(axis=1))
        found.append(matrix.sum(axis=0))
    report = {"images": len(pairs), **scores(total, judge.classes)}
    return report, {"mask": np.array(shown), "found": np.array(found)}


def class_coverage(
    classes: Sequence[str], real: NDArray[Any], synthesized: NDArray[Any], found: NDArray[Any]
) -> dict[str, dict[str, float]]:
    """By class: share of pixels in real and synthesized masks and of what the segmentor found; images that show it."""

    def shares(pixels: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[np.float64] = pixels.sum(axis=0) / max(pixels.sum(), 1)
        return found

    return {
        name: {
            "share_real": float(shares(real)[c]),
            "share_synthesized": float(shares(synthesized)[c]),
            "share_found": float(shares(found)[c]),
            "images_real": int((real[:, c] > 0).sum()),
            "images_synthesized": int((synthesized[:, c] > 0).sum()),
        }
        for c, name in enumerate(classes)
    }


def training_images(
    folders: Sequence[Path], option: str, skip_invalid: bool
) -> tuple[list[Path], NDArray[Any], list[str]]:
    """Image files, their thumbnails (N, S, S, 3), and a line for each file left out; all are opened here.

    Raises:
        InputError: a file is damaged and ``skip_invalid`` is not set, or none is left.
    """

    def look(path: Path) -> str | None:
        try:
            small[path] = thumbnail(path)
        except ImageError as error:
            return str(error)
        return None

    small: dict[Path, NDArray[Any]] = {}
    files = [file for folder in folders for file in list_files(folder, IMAGE_SUFFIXES, option).values()]
    left, wrong = without_faults(files, faults_of(files, look, "training images"), option, skip_invalid)
    return left, np.stack([small[path] for path in left]), wrong


def check_distances(training: int, synthesized: int) -> None:
    """Refuses what FID and KID cannot be computed of.

    Raises:
        InputError: fewer than two images on a side.
    """
    for count, option in ((training, "--train-img-path"), (synthesized, "--syn-img-path")):
        if count < 2:
            raise InputError(
                f"--inception-weights: FID and KID need at least two images, {option} has {count}; name "
                "more, or leave the option out"
            )


def evaluate(
    judge: Judge,
    pairs: dict[str, list[Pair]],
    training: Sequence[Path],
    pool: NDArray[Any],
    limit: float,
    out: Path,
    distances: Callable[[Sequence[Path], Sequence[Path]], dict[str, float]] | None,
    options: dict[str, Any],
    skipped: Sequence[str],
) -> dict[str, Any]:
    """Writes evaluation.json, evaluation.svg and nearest.jpg.

    Args:
        judge: the segmentor.
        pairs: ``real`` and ``syn``.
        training: image files that the synthesis model has seen.
        pool: their thumbnails, see ``training_images``.
        limit: an image nearer to a training image counts as its copy.
        out: folder.
        distances: FID and KID of training and synthesized images, if asked for.
        options: for the report.
        skipped: files left out.

    Returns:
        What evaluation.json holds.
    """
    real, real_pixels = segmentor_scores(judge, pairs["real"], "real")
    synthesized, pixels = segmentor_scores(judge, pairs["syn"], "synthesized")
    images = np.stack([thumbnail(pair.image) for pair in tqdm(pairs["syn"], "synthesized images", unit="image")])
    distance, index = nearest(images, pool)
    real_distance = nearest(pool, pool, leave_out_self=True)[0] if len(pool) > 1 else np.zeros(1)
    rounded = [round(float(value), 5) for value in distance]
    by_image = {
        pair.name: {"distance": rounded[i], "nearest": str(training[index[i]])} for i, pair in enumerate(pairs["syn"])
    }
    report: dict[str, Any] = {
        "options": options,
        "skipped": list(skipped),
        "real": real,
        "synthesized": synthesized,
        "coverage": class_coverage(judge.classes, real_pixels["mask"], pixels["mask"], pixels["found"]),
        "copies": {
            "limit": limit,
            "images": [pair.name for pair, value in zip(pairs["syn"], rounded, strict=True) if value < limit],
            "median_distance": float(np.median(distance)),
            "median_distance_of_training_images": float(np.median(real_distance)),
        },
        "nearest": by_image,
    }
    if distances:
        report |= distances(training, [pair.image for pair in pairs["syn"]])
    with atomic_path(out / "evaluation.svg") as path:
        samples_figure(path, report, distance, real_distance)
    closest = np.argsort(distance)[:SHOWN]
    with atomic_path(out / "nearest.jpg") as path:
        nearest_sheet(path, [(pairs["syn"][i].image, training[index[i]], float(distance[i])) for i in closest])
    write_json(report, out / "evaluation.json")
    return report

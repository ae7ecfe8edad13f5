"""Re-sampling at work: places the chosen pairs into the folders for joint training; stops at any moment and goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_path, check_writable, write_json
from common.images import read_image
from common.pairing import Checked, Pair
from common.processes import bounded
from post_processing import resample_rule as balancing
from post_processing.choices import Choice
from post_processing.resample_report import resample_figure

IMAGES, LABELS = "resampled_img", "resampled_label"


def prepare_folders(out: Path, kept: Sequence[Pair]) -> None:
    """Makes the two folders, clears what a killed run left half written. To be called by the only writer.

    Raises:
        InputError: they hold files of another selection, which would join the training set.
    """
    for folder, names in ((IMAGES, {pair.image.name for pair in kept}), (LABELS, {pair.mask.name for pair in kept})):
        path = check_writable(out / folder, "--out-dir")
        for left_over in path.glob(".*.tmp.*"):
            left_over.unlink()
        if strange := sorted(file.name for file in path.iterdir() if file.name not in names and file.name[0] != "."):
            raise InputError(
                f"--out-dir {out}: holds {len(strange)} files of another selection "
                f"({folder}/{strange[0]}); name another folder or remove this one"
            )


def place_all(kept: Sequence[Pair], sizes: Mapping[str, tuple[int, int]], out: Path, copy: bool, workers: int) -> None:
    """Places pairs in threads, which end with this process; see ``place``.

    Args:
        kept: the pairs.
        sizes: (H, W) of the images that are not of their masks' size, by the mask's size; by name.
        out: the output folder.
        copy: copies, no hard links.
        workers: threads.
    """
    with ThreadPoolExecutor(max(1, bounded(workers, len(kept)))) as pool:
        jobs = [pool.submit(place, pair, out, copy, sizes.get(pair.name)) for pair in kept]
        try:
            for job in tqdm(jobs, "keep", unit="image"):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def place(pair: Pair, out: Path, copy: bool, size: tuple[int, int] | None = None) -> None:
    """Puts image and mask into the output folders, by hard link where possible.

    Args:
        pair: image and mask.
        out: the output folder.
        copy: copies, no hard links.
        size: (H, W) that the image is brought to; None: as it is.
    """
    target = out / IMAGES / pair.image.name
    if size is None:
        link(pair.image, target, copy)
    else:
        with atomic_path(target) as path:
            small = Image.fromarray(read_image(pair.image)).resize(size[::-1], Image.Resampling.BICUBIC)
            small.save(path, quality=95)
    link(pair.mask, out / LABELS / pair.mask.name, copy)


def link(source: Path, target: Path, copy: bool) -> None:
    """A hard link or a copy; what a stopped run has done already stays."""
    with contextlib.suppress(FileNotFoundError):
        there, here = target.stat(), source.stat()
        if there.st_ino == here.st_ino and there.st_dev == here.st_dev:
            if not copy:
                return
        elif (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns):  # a copy
            return
    with atomic_path(target) as path:
        path.unlink()
        if not copy:
            try:
                os.link(source.resolve(), path)
                return
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                    raise
        shutil.copy2(source, path)


def resample(
    pairs: Sequence[Pair],
    checked: Sequence[Checked],
    classes: Sequence[str],
    choice: Choice,
    put: Callable[[list[Pair], dict[str, tuple[int, int]]], None],
    out: Path,
    options: Mapping[str, Any],
    skipped: Sequence[str],
) -> str:
    """Places what a rule chose, writes resample_stats.json and resample_stats.svg; returns what was kept, in short.

    Args:
        pairs: filtered masks and their images.
        checked: what they show.
        classes: C names.
        choice: which are kept, and why.
        put: places pairs, see ``place_all``.
        out: folder.
        options: for the report.
        skipped: files left out.
    """
    pixels = np.array([found.pixels for found in checked])
    areas = np.array([found.size[0] * found.size[1] for found in checked])
    kept = [pair for pair, reason in zip(pairs, choice.reasons, strict=True) if reason]
    prepare_folders(out, kept)
    put(
        kept,
        {pair.name: found.size for pair, found in zip(pairs, checked, strict=True) if found.image_size != found.size},
    )
    statistics = balancing.resample_statistics(
        classes, pixels, areas, choice.reasons, choice.inaccurate, choice.counted
    )
    if choice.masks:
        statistics["masks"] = choice.masks
    images = {
        pair.name: {"kept": reason, "valid_share": round(float(row.sum() / area), 4)}
        for pair, reason, row, area in zip(pairs, choice.reasons, pixels, areas, strict=True)
    }
    write_json(
        {"options": dict(options), "skipped": list(skipped), **statistics, "image": images},
        out / "resample_stats.json",
        indent=None,
    )
    with atomic_path(out / "resample_stats.svg") as path:
        resample_figure(path, statistics)
    return f"{choice.told[0]}{statistics['kept']} of {len(pairs)} images kept in {out}: {choice.told[1]}"

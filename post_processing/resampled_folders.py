"""The folders for joint training: the chosen pairs are put there; a stopped run goes on where it was."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_path, check_writable
from common.images import read_image
from common.pairing import Pair
from common.processes import bounded
from common.rasters import has_rasterio, read_raster, write_geotiff
from common.tiff_tags import read_tags

_AT_ONCE = 64  # links of one job: each takes less time than a job's own
IMAGES, LABELS, WEIGHTS = "resampled_img", "resampled_label", "resampled_weight"


def prepare_folders(out: Path, kept: Sequence[Pair], weighted: bool = False) -> None:
    """Makes the folders, clears what a killed run left half written. To be called by the only writer.

    Raises:
        InputError: they hold files of another selection, which would join the training set.
    """
    expected = {IMAGES: {pair.image.name for pair in kept}, LABELS: {pair.mask.name for pair in kept}}
    if weighted:
        expected[WEIGHTS] = {f"{pair.mask.stem}.png" for pair in kept}
    for folder, names in expected.items():
        path = check_writable(out / folder, "‹out_dir›")
        for left_over in path.glob(".*.tmp.*"):
            left_over.unlink()
        if strange := sorted(file.name for file in path.iterdir() if file.name not in names and file.name[0] != "."):
            raise InputError(
                f"‹out_dir› {out}: holds {len(strange)} files of another selection "
                f"({folder}/{strange[0]}); name another folder or remove this one"
            )


def fill_folders(
    out: Path,
    kept: Sequence[Pair],
    sizes: Mapping[str, tuple[int, int]],
    copy: bool,
    workers: int,
    weights: Path | None = None,
) -> None:
    """Puts pairs into the folders, in threads, which end with this process; to be called by the only writer.

    Args:
        out: holds the folders.
        kept: the pairs.
        sizes: (H, W) that images are brought to, by name; others stay as they are.
        copy: copies, no hard links.
        workers: threads.
        weights: folder of weight maps, which go with their masks.

    Raises:
        InputError: the folders hold files of another selection; a mask has no weight map.
    """
    if weights and (missing := [pair for pair in kept if not (weights / f"{pair.mask.stem}.png").is_file()]):
        raise InputError(
            f"‹weight_map_path› {weights}: no {missing[0].mask.stem}.png ({len(missing)} of {len(kept)} missing); make "
            "them with filter.sh ‹treatment› weight"
        )
    prepare_folders(out, kept, weights is not None)
    with ThreadPoolExecutor(max(1, bounded(workers, len(kept)))) as pool:
        size = 1 if copy or sizes else _AT_ONCE
        some = [kept[start : start + size] for start in range(0, len(kept), size)]
        jobs = [pool.submit(add_pairs, pairs, out, copy, sizes, weights) for pairs in some]
        try:
            with tqdm(total=len(kept), desc="keep", unit="image") as bar:
                for job in jobs:
                    bar.update(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def add_pairs(
    pairs: Sequence[Pair], out: Path, copy: bool, sizes: Mapping[str, tuple[int, int]], weights: Path | None
) -> int:
    """``add_pair`` of each; how many they are."""
    for pair in pairs:
        add_pair(pair, out, copy, sizes.get(pair.name), weights)
    return len(pairs)


def add_pair(
    pair: Pair, out: Path, copy: bool, size: tuple[int, int] | None = None, weights: Path | None = None
) -> None:
    """Puts image and mask, and the mask's weight map, into the folders, by hard link where possible.

    Args:
        pair: image and mask.
        out: holds the folders.
        copy: copies, no hard links.
        size: (H, W) that the image is brought to; None: as it is.
        weights: folder of weight maps, if there are any.
    """
    target = out / IMAGES / pair.image.name
    if size is None:
        link_or_copy(pair.image, target, copy)
    else:
        with atomic_path(target) as path:
            if pair.image.suffix.lower() in (".tif", ".tiff") and has_rasterio():
                write_resized(pair.image, path, size)
            else:
                small = Image.fromarray(read_image(pair.image)).resize(size[::-1], Image.Resampling.BICUBIC)
                small.save(path, quality=95)
    if weights is not None:
        name = f"{pair.mask.stem}.png"
        link_or_copy(weights / name, out / WEIGHTS / name, copy)
    link_or_copy(pair.mask, out / LABELS / pair.mask.name, copy)


def write_resized(source: Path, target: Path, size: tuple[int, int]) -> None:
    """Writes a TIFF of any bands at another size (H, W), in its own numbers, at its place on the map."""
    tags = read_tags(source)
    raster = read_raster(source, tags).in_colors
    dtype, bands = raster.values.dtype, np.moveaxis(raster.values.astype(np.float32), -1, 0)
    resized = [np.asarray(Image.fromarray(band).resize(size[::-1], Image.Resampling.BICUBIC)) for band in bands]
    values = np.dstack(resized)
    if dtype.kind != "f":
        values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
    numbers = values.astype(dtype)
    known = None
    if not raster.valid.all():
        known = np.asarray(Image.fromarray(raster.valid).resize(size[::-1], Image.Resampling.NEAREST))
        if raster.nodata is not None:
            numbers[~known], known = raster.nodata, None
    stated: dict[str, Any] = {"scales": raster.scales, "offsets": raster.offsets, "names": raster.names}
    stated["numbers"] = () if tags is None else tags.numbers
    write_geotiff(target, numbers, raster.place, nodata=raster.nodata, valid=known, **stated)


def link_or_copy(source: Path, target: Path, copy: bool) -> None:
    """A hard link or a copy; what a stopped run has done already stays."""
    if not copy:
        with contextlib.suppress(OSError):  # there already, or no links here: below
            os.link(source.resolve() if source.is_symlink() else source, target)  # at once, or not at all
            return
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

"""Measures the filter beside its segmentor, and the re-sampling beside the reading of its files: ratios in one run.

  python -m docs.scale demo/mbrsc/segmentor.py demo/mbrsc/segmentor.pth --masks 20000 --images 200 --size 256

Makes random images and masks in a temporary folder. Of the filter, the time that it spends within its segmentor, as a
share of all its time; of the re-sampling, the time that its threads take to decode each file once, as a share of its
own. 1: it adds nothing.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from common.files import atomic_folder
from post_processing.filter import filter_images
from post_processing.filter_options import FilterOptions
from post_processing.resample import ResampleOptions, resample
from segmentation.inference import Segmentor, open_segmentor


def make(folder: Path, names: list[str], size: int, classes: int) -> None:
    """Images of noise around a gray level a class, and masks of blocks of classes."""
    rng = np.random.default_rng(0)
    for kind in ("img", "label"):
        (folder / kind).mkdir(parents=True)
    for name in names:
        blocks = rng.integers(0, classes, (size // 16, size // 16), np.uint8)
        ids = blocks.repeat(16, 0).repeat(16, 1)
        noise = rng.integers(0, 40, (*ids.shape, 3), np.uint8)
        Image.fromarray((ids * (200 // classes))[..., None] + noise).save(folder / "img" / f"{name}_seed_0.jpg")
        Image.fromarray(ids).save(folder / "label" / f"{name}.png")


def decode(paths: list[Path], threads: int) -> float:
    """Seconds in which so many threads decode files."""

    def one(path: Path) -> int:
        with Image.open(path) as image:
            return len(np.asarray(image))

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, paths))
    return time.perf_counter() - start


def of_filter(given: argparse.Namespace, folder: Path) -> float:
    """The share of the filter's time that its segmentor takes, on images of which it knows none."""
    segmentor = open_segmentor(given.config, given.weights, device=given.device)
    make(folder / "data", [f"a{i}" for i in range(given.images)], given.size, len(segmentor.class_names))
    real = folder / "real"
    real.mkdir()
    for image in sorted((folder / "data" / "img").iterdir())[:8]:
        (real / f"{image.stem.removesuffix('_seed_0')}.jpg").hardlink_to(image)
    (folder / "masks").mkdir()
    for image in real.iterdir():
        mask = f"{image.stem}.png"
        (folder / "masks" / mask).hardlink_to(folder / "data" / "label" / mask)
    options = FilterOptions(
        config=given.config,
        checkpoint=given.weights,
        real_img_path=real,
        real_label_path=folder / "masks",
        syn_img_path=folder / "data" / "img",
        syn_mask_path=folder / "data" / "label",
        filtered_mask_path=folder / "warm",
        num_workers=given.num_workers,
    )
    few = replace(options, syn_img_path=folder / "few", skip_invalid=True)  # of 2 batches, which take longer at first
    (folder / "few").mkdir()
    for image in sorted((folder / "data" / "img").iterdir())[: 2 * options.batch_size]:
        (folder / "few" / image.name).hardlink_to(image)
    filter_images(few, lambda: segmentor)
    within, step = 0.0, Segmentor.test_step

    def timed(self: Segmentor, data: dict[str, list[Any]]) -> list[Any]:
        nonlocal within
        start = time.perf_counter()
        found = step(self, data)
        _ = [sample.pred_sem_seg.data.cpu() for sample in found]  # a GPU has done its work then
        within += time.perf_counter() - start
        return found

    with patch.object(Segmentor, "test_step", timed):
        start = time.perf_counter()
        filter_images(replace(options, filtered_mask_path=folder / "filtered"), lambda: segmentor)
        return within / (time.perf_counter() - start)


def of_resampling(given: argparse.Namespace, folder: Path) -> float:
    """The reading's time as a share of the re-sampling's, files in the system's memory for both."""
    if not folder.exists():
        names = [f"a{i}" for i in range(given.masks)]
        with atomic_folder(folder, "--keep") as new:
            make(new, names, given.size, 5)
            (new / "filtered").mkdir()
            for name in names:
                (new / "filtered" / f"{name}_seed_0.png").hardlink_to(new / "label" / f"{name}.png")
    files = sorted([*(folder / "img").iterdir(), *(folder / "filtered").iterdir()])
    with Image.open(files[-1]) as image:
        if (len(files), image.width) != (2 * given.masks, given.size):
            raise SystemExit(f"{folder}: holds files of another --masks or --size; name another folder")
    decode(files, given.num_workers)
    reading = decode(files, given.num_workers)
    with TemporaryDirectory(dir=folder) as out:
        options = ResampleOptions(
            filtered_mask_path=folder / "filtered",
            syn_img_path=folder / "img",
            out_dir=Path(out, "kept"),
            classes="MBRSC",
            num_workers=given.num_workers,
        )
        start = time.perf_counter()
        print(resample(options).summary)
        return reading / (time.perf_counter() - start)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="an mmseg segmentor")
    parser.add_argument("weights")
    parser.add_argument("--masks", type=int, default=20000, help="of the re-sampling; 0: not measured")
    parser.add_argument("--keep", type=Path, help="folder for these, which another run finds there")
    parser.add_argument("--images", type=int, default=200, help="of the filter; 0: not measured")
    parser.add_argument("--size", type=int, default=256, help="side in px, a multiple of 16")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        if given.images:
            print(f"segmentor's share of the filter's time: {of_filter(given, Path(folder, 'a')):.2f}")
        if given.masks:
            share = of_resampling(given, given.keep or Path(folder, "b"))
            print(f"reading's share of the re-sampling's time: {share:.2f}")


if __name__ == "__main__":
    main()

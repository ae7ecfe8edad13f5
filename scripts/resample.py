"""Keeps the filtered images that help: those with a poorly recognised class, and those with enough valid pixels."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from common.classes import load_class_table
from common.errors import InputError
from common.files import atomic_path, check_writable, inside, room_for, write_json
from common.pairing import Pair, folder_pairs, listed
from post_processing import balancing
from post_processing.resample_report import resample_figure
from scripts import cli
from scripts.cli import integer, number

DESCRIPTION = """Keeps a filtered image if it shows a poorly recognised class, or if more than --min-valid of its
pixels survived; writes OUT/resampled_img and OUT/resampled_label for joint training, and a report.

  python -m scripts.resample --filtered-mask-path out/filtered --syn-img-path out/images --out-dir out/resampled \\
      --classes MBRSC --inaccurate "road,vegetation"
Poorly recognised classes from a segmentor's metrics (scripts/segmentor.py test): --metrics metrics.json --below 0.5"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; refused where options contradict each other."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("--filtered-mask-path", type=Path, required=True, help="masks that scripts/filter.py wrote")
    parser.add_argument("--syn-img-path", type=Path, required=True, help="synthesised images of the same names")
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for resampled_img, resampled_label, report")
    parser.add_argument("--classes", required=True, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    parser.add_argument("--inaccurate", help="poorly recognised classes by name, with commas between them")
    parser.add_argument("--metrics", type=Path, help="a segmentor's metrics (JSON), to find them by IoU")
    parser.add_argument("--below", type=number(0, 1), help="with --metrics: classes with an IoU below this, 0..1")
    parser.add_argument("--worst", type=integer(1), help="with --metrics: this many classes with the smallest IoU")
    parser.add_argument("--min-valid", type=number(0, 1), default=0.8, help="share of pixels that must survive, 0..1")
    parser.add_argument("--min-pixels", type=integer(1), default=1, help="pixels that make a class count as shown")
    parser.add_argument("--copy", action="store_true", help="copy files, where hard links would share them")
    parser.add_argument("--skip-invalid", action="store_true", help="leave out files that are unpaired or damaged")
    parser.add_argument("--num-workers", type=integer(1), default=len(os.sched_getaffinity(0)), help="readers")
    args = parser.parse_args(argv)
    if args.inaccurate and args.metrics:
        raise InputError("--inaccurate and --metrics: give one of them")
    if args.metrics and (args.below is None) == (args.worst is None):
        raise InputError("--metrics: say which classes count, with --below or --worst")
    if not args.metrics and (args.below is not None or args.worst is not None):
        raise InputError("--below and --worst need --metrics FILE")
    for folder in (args.filtered_mask_path, args.syn_img_path):
        if inside(args.out_dir, folder):
            raise InputError(f"--out-dir {args.out_dir}: lies inside {folder}; name another folder")
    return args


def inaccurate_classes(args: argparse.Namespace, classes: Sequence[str]) -> list[int]:
    """Ids of the poorly recognised classes that the options name; none where no option does."""
    if args.inaccurate:
        names = [name.strip() for name in args.inaccurate.split(",") if name.strip()]
        return balancing.classes_by_name(names, classes)
    if not args.metrics:
        return []
    try:
        scores = {name: entry["IoU"] for name, entry in json.loads(args.metrics.read_text())["classes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--metrics {args.metrics}: not metrics of scripts/segmentor.py test ({error})") from error
    return balancing.classes_by_score(scores, classes, args.below, args.worst)


def count(pair: Pair, num_classes: int) -> tuple[np.ndarray, int] | str:
    """Surviving pixels of each class (C,) and all pixels of a mask; what is wrong, where something is."""
    try:
        with Image.open(pair.mask) as mask:
            if mask.mode not in ("L", "P"):
                return f"{pair.mask}: mode {mask.mode}; a mask holds class ids, 8 bit (mode L or P)"
            pixels = np.array(mask.histogram())
        with Image.open(pair.image) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        return f"{pair.image.stem}: image or mask cannot be read ({error}); write it again or remove it"
    if beyond := np.flatnonzero(pixels[num_classes:255]).tolist():
        return f"{pair.mask}: class id {num_classes + beyond[0]}, but the table has {num_classes} classes"
    return pixels[:num_classes], int(pixels.sum())


def place(pair: Pair, out: Path, copy: bool) -> None:
    """Puts image and mask into the output folders, by hard link where possible; the image gets the mask's size."""
    target = out / "resampled_img" / pair.image.name
    with Image.open(pair.image) as image, Image.open(pair.mask) as mask:
        if image.size == mask.size:
            link(pair.image, target, copy)
        elif not target.is_file() or target.stat().st_mtime < pair.image.stat().st_mtime:
            with atomic_path(target) as path:
                image.resize(mask.size, Image.Resampling.BICUBIC).save(path, quality=95)
    link(pair.mask, out / "resampled_label" / pair.mask.name, copy)


def link(source: Path, target: Path, copy: bool) -> None:
    """A hard link or a copy; what a stopped run has done already stays."""
    if target.exists():
        if target.samefile(source) and not copy:
            return
        there, here = target.stat(), source.stat()
        same = (there.st_size, there.st_mtime) == (here.st_size, here.st_mtime)
        if same and there.st_ino != here.st_ino:  # a copy
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


def check_out_dir(out: Path, kept: list[Pair]) -> None:
    """Refuses an output folder with files of another selection: they would join the training set."""
    for folder, names in (("resampled_img", {pair.image.name for pair in kept}),
                          ("resampled_label", {pair.mask.name for pair in kept})):
        path = check_writable(out / folder, "--out-dir")
        if strange := sorted(file.name for file in path.iterdir() if file.name not in names and file.name[0] != "."):
            raise InputError(f"--out-dir {out}: holds {len(strange)} files of another selection "
                             f"({folder}/{strange[0]}); name another folder or remove this one")


def run_resample(args: argparse.Namespace) -> None:
    """Counts, chooses, places, reports."""
    classes = list(load_class_table(args.classes).names)
    inaccurate = inaccurate_classes(args, classes)
    options = ("--syn-img-path", "--filtered-mask-path")
    pairs, skipped = folder_pairs(args.syn_img_path, args.filtered_mask_path, options, args.skip_invalid)
    with ProcessPoolExecutor(args.num_workers) as pool:
        chunk = max(1, min(256, len(pairs) // args.num_workers))
        counts = list(tqdm(pool.map(partial(count, num_classes=len(classes)), pairs, chunksize=chunk),
                           "read", len(pairs), unit="mask"))
        faults = [found for found in counts if isinstance(found, str)]
        if faults and not args.skip_invalid:
            raise InputError(f"{listed(faults)}; correct them, or leave them out with --skip-invalid")
        read = [(pair, *found) for pair, found in zip(pairs, counts, strict=True) if not isinstance(found, str)]
        if not read:
            raise InputError(f"--filtered-mask-path {args.filtered_mask_path}: no valid mask left; first: {faults[0]}")
        reasons = [balancing.keep_reason(pixels, size, inaccurate, args.min_valid, args.min_pixels)
                   for _, pixels, size in read]
        kept = [pair for (pair, *_), reason in zip(read, reasons, strict=True) if reason]
        check_out_dir(args.out_dir, kept)
        list(tqdm(pool.map(partial(place, out=args.out_dir, copy=args.copy), kept, chunksize=chunk),
                  "keep", len(kept), unit="image"))
    report(args, classes, inaccurate, read, reasons, skipped + faults)


def report(args: argparse.Namespace, classes: list[str], inaccurate: list[int],
           read: list[tuple[Pair, np.ndarray, int]], reasons: list[str | None], skipped: list[str]) -> None:
    """Writes resample_stats.json and resample_stats.svg, and says in short what was kept."""
    if skipped:
        print(f"{len(skipped)} files left out: {listed(skipped)}", file=sys.stderr)
    statistics = balancing.resample_statistics(classes, np.array([pixels for _, pixels, _ in read]),
                                               np.array([size for *_, size in read]), reasons, inaccurate)
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    images = {pair.name: {"kept": reason, "valid_share": round(pixels.sum() / size, 4)}
              for (pair, pixels, size), reason in zip(read, reasons, strict=True)}
    write_json({"options": given, "skipped": skipped, **statistics, "image": images},
               args.out_dir / "resample_stats.json", indent=None)
    with atomic_path(args.out_dir / "resample_stats.svg") as path:
        resample_figure(path, statistics)
    why = statistics["reasons"]
    names = ", ".join(classes[c] for c in inaccurate) or "none named (--inaccurate or --metrics)"
    print(f"poorly recognised classes: {names}")
    print(f"{statistics['kept']} of {len(read)} images kept in {args.out_dir}: {why['inaccurate class']} show a poorly "
          f"recognised class, {why['valid pixels']} more have over {100 * args.min_valid:g} % valid pixels")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    with room_for("--out-dir", args.out_dir):
        run_resample(args)


if __name__ == "__main__":
    cli.run(main)

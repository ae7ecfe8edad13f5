"""Keeps the filtered images that help: those with a poorly recognised class, and those with enough valid pixels."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.classes import load_class_table
from common.errors import InputError
from common.files import check_writable, inside, only_writer, room_for
from common.images import Labels
from common.pairing import listed
from post_processing import balancing
from post_processing.filter_state import label_of_id
from post_processing.metrics_file import read_metrics
from post_processing.pairs import sound_pairs
from post_processing.resample_run import place_all, resample
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
    parser.add_argument("--num-workers", type=integer(1, 256), default=len(os.sched_getaffinity(0)), help="readers")
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
    scores = {name: entry.IoU for name, entry in read_metrics(args.metrics).classes.items()}
    return balancing.classes_by_score(scores, classes, args.below, args.worst)


def run_resample(args: argparse.Namespace) -> None:
    """Checks all files, chooses, places, reports."""
    table = load_class_table(args.classes)
    classes = list(table.names)
    inaccurate = inaccurate_classes(args, classes)
    of_id = label_of_id(args.filtered_mask_path)
    labels = table.labels if of_id is None else Labels(len(classes), of_id=of_id)
    pairs, checked, skipped = sound_pairs(
        args.syn_img_path, args.filtered_mask_path, ("--syn-img-path", "--filtered-mask-path"), labels,
        skip_invalid=args.skip_invalid)
    if skipped:
        print(f"{len(skipped)} files left out: {listed(skipped)}", file=sys.stderr)
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    put = partial(place_all, out=args.out_dir, copy=args.copy, workers=args.num_workers)
    print(resample(pairs, checked, classes, inaccurate, args.min_valid, args.min_pixels, put, args.out_dir, given,
                   skipped))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    with room_for("--out-dir", args.out_dir):
        check_writable(args.out_dir, "--out-dir")
        with only_writer(args.out_dir, "--out-dir"):
            run_resample(args)


if __name__ == "__main__":
    cli.run(main)

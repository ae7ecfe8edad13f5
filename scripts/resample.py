"""Keeps the filtered images that help: those of poorly recognized classes or enough valid pixels, or by hardness."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import command as cli
from common.classes import load_class_table, plain_name
from common.converters import integer, number
from common.errors import InputError
from common.files import check_writable, inside, only_writer, room_for
from common.images import Labels
from common.metrics_file import read_metrics
from common.pairing import listed
from common.schema import one_line
from common.sound_pairs import sound_pairs
from post_processing import resample_rule as balancing
from post_processing.choices import by_class, by_hardness, filtered_pixels, masks_pixels, read_class_loss
from post_processing.filter_state import STATS, classes_of, label_of_id
from post_processing.resample_run import place_all, resample

DESCRIPTION = """Writes OUT/resampled_img and OUT/resampled_label for joint training, and a report. Two rules:
--rule class     keeps an image if it shows a poorly recognized class, or if over --min-valid of its pixels survived
--rule hardness  keeps more images of a mask the harder its classes are on real images: of n images of the mask of rank
                 i of N (1: easiest), min(1 + round(n * i / N), n), drawn at random; each mask has its own n

  python -m scripts.resample --filtered-mask-path out/filtered --syn-img-path out/images --out-dir out/resampled \\
      --classes MBRSC --inaccurate "road,vegetation"
Poorly recognized classes from a segmentor's metrics (scripts/segmentor.py test): --metrics metrics.json --below 0.5"""

# rule -> its options, and their defaults
RULES: dict[str, dict[str, float | None]] = {
    "class": {"inaccurate": None, "metrics": None, "below": None, "worst": None, "min_valid": 0.8, "min_pixels": 1},
    "hardness": {"real_loss": None, "syn_mask_path": None, "seed": 0},
}
PUBLISHED_CLASSES = "FUSU"
PUBLISHED_POOR = ("agriculture construction", "special", "public construction", "commercial land", "grass")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; refused where options contradict each other."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("--filtered-mask-path", type=Path, required=True, help="masks that scripts/filter.py wrote")
    parser.add_argument("--syn-img-path", type=Path, required=True, help="synthesized images of the same names")
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for resampled_img, resampled_label, report")
    parser.add_argument("--rule", choices=list(RULES), default="class", help="which images are kept")
    parser.add_argument(
        "--classes", help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json (default: FUSU, as published)"
    )
    parser.add_argument(
        "--inaccurate",
        help="poorly recognized classes by name, with commas between them (default: "
        "none; without --classes, as published, " + ", ".join(PUBLISHED_POOR) + ")",
    )
    parser.add_argument("--metrics", type=Path, help="a segmentor's metrics (JSON), to find them by IoU")
    parser.add_argument("--below", type=number(0, 1), help="with --metrics: classes with an IoU below this, 0..1")
    parser.add_argument("--worst", type=integer(1), help="with --metrics: this many classes with the smallest IoU")
    parser.add_argument(
        "--min-valid", type=number(0, 1), help="share of pixels that must survive, 0..1 (default: 0.8, as published)"
    )
    parser.add_argument("--min-pixels", type=integer(1), help="pixels that make a class count as shown (default: 1)")
    parser.add_argument(
        "--real-loss",
        type=Path,
        help="with --rule hardness: each class's mean loss on real images, a "
        f"filter_stats.json or real_loss.json (default: {STATS} in --filtered-mask-path)",
    )
    parser.add_argument(
        "--syn-mask-path",
        type=Path,
        help="with --rule hardness: the masks that the images were made "
        f"of (default: their pixels as {STATS} in --filtered-mask-path counts them)",
    )
    parser.add_argument("--seed", type=integer(0), help="with --rule hardness: of the draws (default: 0)")
    parser.add_argument("--copy", action="store_true", help="copy files, where hard links would share them")
    parser.add_argument("--skip-invalid", action="store_true", help="leave out files that are unpaired or damaged")
    parser.add_argument("--num-workers", type=integer(1, 256), default=len(os.sched_getaffinity(0)), help="readers")
    args = parser.parse_args(argv)
    for rule, options in RULES.items():
        for name, default in options.items():
            if rule != args.rule and getattr(args, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')}: belongs to --rule {rule}, this is --rule {args.rule}; "
                    "leave out one of them"
                )
            if rule == args.rule and getattr(args, name) is None:
                setattr(args, name, default)
    if args.inaccurate and args.metrics:
        raise InputError("--inaccurate and --metrics: give one of them")
    if args.metrics and (args.below is None) == (args.worst is None):
        raise InputError("--metrics: say which classes count, with --below or --worst")
    if not args.metrics and (args.below is not None or args.worst is not None):
        raise InputError("--below and --worst need --metrics FILE")
    if args.classes is None:
        poor = None if args.inaccurate or args.metrics or args.rule != "class" else ",".join(PUBLISHED_POOR)
        check_published(args.filtered_mask_path)
        args.classes, args.inaccurate = PUBLISHED_CLASSES, args.inaccurate or poor
        named = f", poorly recognized {', '.join(PUBLISHED_POOR)}" if poor else ""
        print(f"classes of {PUBLISHED_CLASSES}{named}: the published defaults; see --classes, --inaccurate")
    for folder in (args.filtered_mask_path, args.syn_img_path):
        if inside(args.out_dir, folder):
            raise InputError(f"--out-dir {args.out_dir}: lies inside {folder}; name another folder")
    return args


def check_published(filtered: Path) -> None:
    """Refuses the published default where the filter worked with other classes.

    Raises:
        InputError: it did; names the first.
    """
    found = classes_of(filtered)
    table = load_class_table(PUBLISHED_CLASSES)
    known = {plain_name(name) for name in table.names}
    if other := [name for name in found or () if plain_name(name) not in known]:
        raise InputError(
            f"--classes: not given, and {filtered} was filtered with a class {one_line(other[0], 60)} "
            f"that is none of {PUBLISHED_CLASSES}'s; name its class table"
        )


def inaccurate_classes(args: argparse.Namespace, classes: Sequence[str]) -> list[int]:
    """Ids of the poorly recognized classes that the options name; none where no option does."""
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
    mean_loss = (
        read_class_loss(args.real_loss or args.filtered_mask_path / STATS, classes) if args.rule == "hardness" else None
    )
    of_id = label_of_id(args.filtered_mask_path)
    labels = table.labels if of_id is None else Labels(len(classes), of_id=of_id)
    pairs, checked, skipped = sound_pairs(
        args.syn_img_path,
        args.filtered_mask_path,
        ("--syn-img-path", "--filtered-mask-path"),
        labels,
        skip_invalid=args.skip_invalid,
    )
    if skipped:
        print(f"{len(skipped)} files left out: {listed(skipped)}", file=sys.stderr)
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    put = partial(place_all, out=args.out_dir, copy=args.copy, workers=args.num_workers)
    if mean_loss is None:
        choice = by_class(checked, classes, inaccurate, args.min_valid, args.min_pixels)
    else:
        pixels, mask_of = (
            masks_pixels(args.syn_mask_path, pairs, labels, args.num_workers)
            if args.syn_mask_path
            else filtered_pixels(args.filtered_mask_path, pairs, classes)
        )
        choice = by_hardness(pairs, classes, mean_loss, pixels, mask_of, args.seed)
    print(resample(pairs, checked, classes, choice, put, args.out_dir, given, skipped))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    with room_for("--out-dir", args.out_dir):
        check_writable(args.out_dir, "--out-dir")
        with only_writer(args.out_dir, "--out-dir"):
            run_resample(args)


if __name__ == "__main__":
    cli.run(main)

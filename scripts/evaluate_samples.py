"""Says how good synthesized images are, without training anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common import command as cli
from common.config_options import ConfigOptions
from common.converters import batch_size, number, workers
from common.devices import pick_device
from common.errors import InputError
from common.files import check_writable, inside, only_writer, room_for
from common.options import add_options
from common.pairing import Pair, listed, sound_pairs
from evaluation.samples import Judge, check_distances, evaluate, training_images
from segmentation.config import load_config, set_data
from segmentation.inference import Segmentor, load_segmentor, segment

DESCRIPTION = """Evaluates synthesized images without training: does a segmentor trained on real images find the mask in
them (beside its score on real images that it was not trained on), how far are they from their nearest training image
(copies are flagged), which classes do they cover, and FID and KID where Inception weights are given.

  python -m scripts.evaluate_samples work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth \\
      --real-img-path data/img_test --real-label-path data/label_test --syn-img-path out/images \\
      --syn-mask-path data/label_train --train-img-path data/img_train --out-dir out/evaluation"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("config", help="mmseg config of the segmentor trained on real images")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("--real-img-path", type=Path, required=True, help="real images that it was not trained on")
    parser.add_argument("--real-label-path", "--real-mask-path", type=Path, required=True, help="their masks")
    parser.add_argument("--syn-img-path", type=Path, required=True, help="synthesized images")
    parser.add_argument("--syn-mask-path", type=Path, required=True, help="masks that they were synthesized from")
    parser.add_argument(
        "--train-img-path",
        type=Path,
        nargs="+",
        required=True,
        help="images that the synthesis model has seen, in training or as references",
    )
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for evaluation.json and pictures")
    parser.add_argument("--classes", help="class table, by name or path to a classes.json (default: the config's)")
    parser.add_argument(
        "--copy-distance",
        type=number(0),
        default=0.02,
        help="an image nearer to a training image is flagged as copy (RMS of 32 x 32 thumbnails, 0..1)",
    )
    parser.add_argument(
        "--inception-weights",
        type=Path,
        help="torchvision's inception_v3 weights (.pth), for FID and KID to the training images",
    )
    parser.add_argument("--skip-invalid", action="store_true", help="leave out files that are unpaired or damaged")
    parser.add_argument(
        "--batch-size",
        "--batch-size",
        type=batch_size,
        help="images a batch, of one size (default: as in the config's own test)",
    )
    parser.add_argument("--num-workers", "--num-workers", type=workers, default=2, help="processes that read images")
    add_options(parser, ConfigOptions)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    cli.taken(ConfigOptions, args)
    return args


def judge(segmentor: Segmentor, batch_size: int, num_workers: int) -> Judge:
    """The segmentor as ``post_processing`` needs it."""

    def find(files: Sequence[tuple[Path, Path]]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        batches = [range(start, min(start + batch_size, len(files))) for start in range(0, len(files), batch_size)]
        for found in segment(segmentor, files, batches, num_workers):
            yield found.found, found.ids

    return Judge(segmentor.class_names, segmentor.rule.table, segmentor.rule.unscored, find)


def run_evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """Checks all that can be known, then judges; returns the report."""
    config = load_config(args.config, args.cfg_options, args.trust_config)
    set_data(config, classes=args.classes)
    device = pick_device(args.device)
    segmentor = load_segmentor(config, args.checkpoint, device)
    distances = None
    if args.inception_weights:
        from evaluation import inception  # needs torchvision's models: seconds

        features = inception.inception_features(args.inception_weights)
        distances = partial(inception.distances, features, device=device, batch_size=args.batch_size or 8)
    labels = segmentor.rule.labels()
    pairs: dict[str, list[Pair]] = {}
    skipped: list[str] = []
    for kind, images, masks, option in (
        ("real", args.real_img_path, args.real_label_path, "--real-label-path"),
        ("syn", args.syn_img_path, args.syn_mask_path, "--syn-mask-path"),
    ):
        found = sound_pairs(
            images,
            masks,
            (f"--{kind}-img-path", option),
            labels,
            same_size=kind == "real",
            skip_invalid=args.skip_invalid,
        )
        pairs[kind] = found.pairs
        skipped += found.left_out
    training, pool, left_out = training_images(args.train_img_path, "--train-img-path", args.skip_invalid)
    skipped += left_out
    if distances:
        check_distances(len(training), len(pairs["syn"]))
    options = {key: str(value) if isinstance(value, (Path, list)) else value for key, value in vars(args).items()}
    by = judge(segmentor, args.batch_size or segmentor.batch_size(), args.num_workers)
    return evaluate(by, pairs, training, pool, args.copy_distance, args.out_dir, distances, options, skipped)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    inputs = (args.real_img_path, args.real_label_path, args.syn_img_path, args.syn_mask_path, *args.train_img_path)
    if folder := next((folder for folder in inputs if inside(args.out_dir, folder)), None):
        raise InputError(f"--out-dir {args.out_dir}: lies inside {folder}; name another folder")
    with room_for("--out-dir", args.out_dir):
        check_writable(args.out_dir, "--out-dir")
        with only_writer(args.out_dir, "--out-dir"):
            report = run_evaluation(args)
    for kind in ("real", "synthesized"):
        entry = report[kind]
        print(
            f"{kind:12} {entry['images']:6} images  OA {entry['OA']:.4f}  mIoU {entry['mIoU']:.4f}  "
            f"mAcc {entry['mAcc']:.4f}"
        )
    copies = report["copies"]
    print(
        f"copies       {len(copies['images']):6} images nearer than {copies['limit']:g} to a training image (median "
        f"{copies['median_distance']:.4f}; of training images {copies['median_distance_of_training_images']:.4f})"
    )
    if "FID" in report:
        print(f"FID {report['FID']:.2f}  KID {report['KID']:.4f} +- {report['KID_std']:.4f}")
    if report["skipped"]:
        print(f"{len(report['skipped'])} files left out: {listed(report['skipped'])}", file=sys.stderr)
    print(f"{args.out_dir}: evaluation.json, evaluation.svg, nearest.jpg")


if __name__ == "__main__":
    cli.run(main)

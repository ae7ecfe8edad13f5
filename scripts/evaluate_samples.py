"""Says how good synthesised images are, without training anything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from tqdm import tqdm

from common.files import atomic_path, check_writable, room_for, write_json
from common.images import read_mask
from common.pairing import IMAGE_SUFFIXES, Pair, list_files, listed
from post_processing.nearest import nearest, thumbnail
from post_processing.samples_report import nearest_sheet, samples_figure
from post_processing.scores import confusion, scores
from scripts import cli
from scripts.cli import integer, number
from scripts.pairs import find_pairs, pick_device
from segmentation.config import add_cfg_options, load_config, set_data
from segmentation.inference import load_segmentor, segment

DESCRIPTION = """Evaluates synthesised images without training: does a segmentor trained on real images find the mask in
them (beside its score on real images that it was not trained on), how far are they from their nearest training image
(copies are flagged), which classes do they cover, and FID and KID where Inception weights are given.

  python -m scripts.evaluate_samples work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth \\
      --real-img-path data/img_test --real-label-path data/label_test --syn-img-path out/images \\
      --syn-mask-path data/label_train --train-img-path data/img_train --out-dir out/evaluation"""

SHOWN = 8  # nearest pairs in the picture


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("config", help="mmseg config of the segmentor trained on real images")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("--real-img-path", type=Path, required=True, help="real images that it was not trained on")
    parser.add_argument("--real-label-path", "--real-mask-path", type=Path, required=True, help="their masks")
    parser.add_argument("--syn-img-path", type=Path, required=True, help="synthesised images")
    parser.add_argument("--syn-mask-path", type=Path, required=True, help="masks that they were synthesised from")
    parser.add_argument("--train-img-path", type=Path, nargs="+", required=True,
                        help="images that the synthesis model has seen, in training or as references")
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for evaluation.json and pictures")
    parser.add_argument("--classes", help="class table, by name or path to a classes.json (default: the config's)")
    parser.add_argument("--copy-distance", type=number(0), default=0.02,
                        help="an image nearer to a training image is flagged as copy (RMS of 32 x 32 thumbnails, 0..1)")
    parser.add_argument("--inception-weights", type=Path,
                        help="torchvision's inception_v3 weights (.pth), for FID and KID to the training images")
    parser.add_argument("--skip-invalid", action="store_true", help="leave out files that are unpaired or damaged")
    parser.add_argument("--batch_size", "--batch-size", type=integer(1), default=8, help="images a batch, of one size")
    parser.add_argument("--num_workers", "--num-workers", type=integer(0), default=2, help="processes that read images")
    add_cfg_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def segmentor_scores(model: Any, config: Config, pairs: list[Pair], kind: str, args: argparse.Namespace
                     ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores of all pairs together, and each image's class pixels: ``mask`` and ``found``, int64 (N, C)."""
    total = np.zeros((model.num_classes, model.num_classes), dtype=np.int64)
    shown, found = [], []
    files = [(pair.image, pair.mask) for pair in pairs]
    results = segment(model, config, files, read_mask, args.batch_size, args.num_workers)
    for _, logits, mask in tqdm(results, kind, len(pairs), unit="image"):
        matrix = confusion(logits.argmax(dim=0).cpu().numpy(), mask, model.num_classes)
        total += matrix
        shown.append(matrix.sum(axis=1))
        found.append(matrix.sum(axis=0))
    report = {"images": len(pairs), **scores(total, model.class_names)}
    return report, {"mask": np.array(shown), "found": np.array(found)}


def class_coverage(classes: Sequence[str], real: np.ndarray, synthesised: np.ndarray, found: np.ndarray
                   ) -> dict[str, dict[str, float]]:
    """By class: share of pixels in real and synthesised masks and of what the segmentor found; images that show it."""
    def shares(pixels: np.ndarray) -> np.ndarray:
        return pixels.sum(axis=0) / max(pixels.sum(), 1)

    return {
        name: {
            "share_real": float(shares(real)[c]),
            "share_synthesised": float(shares(synthesised)[c]),
            "share_found": float(shares(found)[c]),
            "images_real": int((real[:, c] > 0).sum()),
            "images_synthesised": int((synthesised[:, c] > 0).sum()),
        }
        for c, name in enumerate(classes)
    }


def thumbnails(files: Iterable[Path], label: str, workers: int) -> np.ndarray:
    """Thumbnails (N, S, S, 3) of image files."""
    files = list(files)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return np.stack(list(tqdm(pool.map(thumbnail, files), label, len(files), unit="image")))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the report says; pictures and evaluation.json are written on the way."""
    config = load_config(args.config, args.cfg_options, args.trust_config)
    set_data(config, classes=args.classes)
    training = [file for folder in args.train_img_path
                for file in list_files(folder, IMAGE_SUFFIXES, "--train-img-path").values()]
    device = pick_device(args.device)
    model = load_segmentor(config, args.checkpoint, device)
    inception = None
    if args.inception_weights:
        from post_processing.inception import distances, inception_features  # needs torchvision's models: seconds

        inception = inception_features(args.inception_weights)
    check_writable(args.out_dir, "--out-dir")
    pairs, skipped = find_pairs(args, model.num_classes)
    real, real_pixels = segmentor_scores(model, config, pairs["real"], "real", args)
    synthesised, pixels = segmentor_scores(model, config, pairs["syn"], "synthesised", args)
    pool = thumbnails(training, "training images", args.num_workers)
    images = thumbnails((pair.image for pair in pairs["syn"]), "synthesised images", args.num_workers)
    distance, index = nearest(images, pool)
    real_distance = nearest(pool, pool, leave_out_self=True)[0] if len(pool) > 1 else np.zeros(1)
    by_image = {pair.name: {"distance": round(float(distance[i]), 5), "nearest": str(training[index[i]])}
                for i, pair in enumerate(pairs["syn"])}
    report: dict[str, Any] = {
        "options": {key: str(value) if isinstance(value, (Path, list)) else value for key, value in vars(args).items()},
        "skipped": skipped,
        "real": real,
        "synthesised": synthesised,
        "coverage": class_coverage(model.class_names, real_pixels["mask"], pixels["mask"], pixels["found"]),
        "copies": {
            "limit": args.copy_distance,
            "images": [name for name, entry in by_image.items() if entry["distance"] < args.copy_distance],
            "median_distance": float(np.median(distance)),
            "median_distance_of_training_images": float(np.median(real_distance)),
        },
        "nearest": by_image,
    }
    if inception:
        report |= distances(inception, training, [pair.image for pair in pairs["syn"]], device, args.batch_size)
    with atomic_path(args.out_dir / "evaluation.svg") as path:
        samples_figure(path, report, distance, real_distance)
    closest = np.argsort(distance)[:SHOWN]
    with atomic_path(args.out_dir / "nearest.jpg") as path:
        nearest_sheet(path, [(pairs["syn"][i].image, training[index[i]], float(distance[i])) for i in closest])
    write_json(report, args.out_dir / "evaluation.json")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    with room_for("--out-dir", args.out_dir):
        report = evaluate(args)
    for kind in ("real", "synthesised"):
        entry = report[kind]
        print(f"{kind:12} {entry['images']:6} images  OA {entry['OA']:.4f}  mIoU {entry['mIoU']:.4f}  "
              f"mAcc {entry['mAcc']:.4f}")
    copies = report["copies"]
    print(f"copies       {len(copies['images']):6} images nearer than {copies['limit']:g} to a training image (median "
          f"{copies['median_distance']:.4f}; of training images {copies['median_distance_of_training_images']:.4f})")
    if "FID" in report:
        print(f"FID {report['FID']:.2f}  KID {report['KID']:.4f} +- {report['KID_std']:.4f}")
    if report["skipped"]:
        print(f"{len(report['skipped'])} files left out: {listed(report['skipped'])}", file=sys.stderr)
    print(f"{args.out_dir}: evaluation.json, evaluation.svg, nearest.jpg")


if __name__ == "__main__":
    cli.run(main)

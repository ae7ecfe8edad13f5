"""Trains a segmentor with and without synthesised images, over several seeds, and says whether they helped."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.config import Config
from PIL import Image
from tqdm import tqdm

from cldm.records import read_records
from common.classes import load_class_table
from common.errors import InputError
from common.files import atomic_path, check_writable, digest, write_json
from common.images import read_mask
from common.pairing import IMAGE_SUFFIXES, list_files, mask_name
from post_processing.comparison import SCORES, compare
from post_processing.comparison_figures import classes_figure, seeds_figure
from post_processing.page import embedded_svg, gallery, page
from scripts import cli
from scripts.cli import integer
from scripts.segmentor import LOADERS, check_files, resolve
from scripts.segmentor import parse_args as segmentor_args
from segmentation.config import add_cfg_options, nodes

DESCRIPTION = """Trains a segmentor on real images alone and jointly with synthesised ones, over several seeds with
equal iterations, tests both on the same held-out images, and writes comparison.json and comparison.html, one page with
tables, plots and a gallery. A stopped comparison goes on with the same command; seeds or splits may be added.

  python -m scripts.compare configs/mmseg/tiny.py --data-root data --classes MBRSC --synthesised out/resampled \\
      --seeds 5 --max-iters 1000 --splits test target --out-dir out/comparison \\
      --syn-img-path out/images --mask-path data/label_train --filtered-mask-path out/filtered"""

KINDS = ("baseline", "joint")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("config", help="mmseg config of the baseline, trained on real images")
    parser.add_argument("--joint-config", help="config of the joint training (default: the same, with --synthesised)")
    parser.add_argument("--synthesised", help="folder with resampled_img and resampled_label")
    parser.add_argument("--repeat", type=integer(1), default=10, help="how often a real pair counts in joint training")
    parser.add_argument("--data-root", help="data set's folder (default: the config's)")
    parser.add_argument("--classes", help="class table, by name or path to a classes.json (default: the config's)")
    parser.add_argument("--splits", nargs="+", default=["test"], help="test sets: img_<split>, label_<split>")
    parser.add_argument("--seeds", type=integer(1), default=5, help="number of seeds: 0, 1, ...")
    parser.add_argument("--max-iters", type=integer(1), help="iterations of every training (default: the config's)")
    parser.add_argument("--crop-size", type=integer(1), help="side of training crops (default: the config's)")
    parser.add_argument("--pretrained", help="backbone weights: a file, or none (default: the config's)")
    add_cfg_options(parser)
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for runs, comparison.json and the page")
    parser.add_argument("--jobs", type=integer(1), default=1, help="trainings at once on this machine")
    parser.add_argument("--syn-img-path", type=Path, help="gallery: synthesised images, with samples.jsonl")
    parser.add_argument("--mask-path", type=Path, help="gallery: masks that they were synthesised from")
    parser.add_argument("--filtered-mask-path", type=Path, help="gallery: masks that filter.sh wrote")
    parser.add_argument("--evaluation", type=Path, help="scripts/evaluate_samples.py's --out-dir, to show its figure")
    parser.add_argument("--gallery", type=integer(0), default=12, help="images in the gallery, evenly spread over all")
    args = parser.parse_args(argv)
    if not (args.joint_config or args.synthesised):
        raise InputError("give --synthesised DIR (resample.sh's --out-dir), or --joint-config")
    for option in ("syn_img_path", "mask_path", "filtered_mask_path", "evaluation"):
        folder = getattr(args, option)
        if folder and not folder.is_dir():
            raise InputError(f"--{option.replace('_', '-')} {folder}: no such folder")
    if args.gallery and args.syn_img_path and not args.mask_path:
        raise InputError("--syn-img-path: the gallery needs --mask-path too")
    return args


def train_options(args: argparse.Namespace, kind: str) -> list[str]:
    """Options of scripts/segmentor.py that a kind of training has beside its seed."""
    given: dict[str, Any] = {"--data-root": args.data_root, "--classes": args.classes, "--max-iters": args.max_iters,
                             "--crop-size": args.crop_size, "--pretrained": args.pretrained}
    if kind == "joint":
        given |= {"--synthesised": args.synthesised, "--repeat": args.repeat if args.synthesised else None}
    options = [str(part) for key, value in given.items() if value is not None for part in (key, value)]
    if args.cfg_options:
        options += ["--cfg-options", *(f"{key}={json.dumps(value) if not isinstance(value, str) else value}"
                                       for key, value in args.cfg_options.items())]
    return options


def config_path(args: argparse.Namespace, kind: str) -> str:
    """The config of a kind of training."""
    return args.joint_config if kind == "joint" and args.joint_config else args.config


def resolved(args: argparse.Namespace, kind: str, task: str, *more: str) -> Config:
    """The config of a training or test, as scripts/segmentor.py will have it."""
    return resolve(segmentor_args([task, config_path(args, kind), *train_options(args, kind), *more]))


def check_data(args: argparse.Namespace) -> None:
    """Opens all files once, so that not every training does."""
    for kind in KINDS:
        check_files(resolved(args, kind, "train"), LOADERS["train"])
    for split in args.splits:
        check_files(resolved(args, "baseline", "test", "--split", split), LOADERS["test"])


def check_equal_effort(args: argparse.Namespace) -> dict[str, Any]:
    """Resolves both configs and refuses what would make the comparison unfair; returns what identifies it."""
    configs = {kind: resolved(args, kind, "train") for kind in KINDS}
    for what, value in (("train_cfg.max_iters", lambda cfg: cfg.train_cfg.max_iters),
                        ("train_dataloader.batch_size", lambda cfg: cfg.train_dataloader.batch_size),
                        ("model", lambda cfg: cfg.model), ("optim_wrapper", lambda cfg: cfg.optim_wrapper),
                        ("param_scheduler", lambda cfg: cfg.get("param_scheduler"))):
        before, after = (value(configs[kind]) for kind in KINDS)
        if before != after:
            raise InputError(f"{args.config} and {args.joint_config}: {what} differs; both trainings must match")
    real, joint = (list(nodes(configs[kind].train_dataloader, "MaskDataset")) for kind in KINDS)
    added = sorted({entry.synthesised for entry in joint if entry.get("synthesised")})
    for folder in added:
        list_files(Path(folder) / "resampled_img", IMAGE_SUFFIXES, "--synthesised")
    if any(entry.get("synthesised") for entry in real):
        raise InputError(f"{args.config}: the baseline has synthesised images; name a config without them")
    names = [str(path) for folder in added for path in sorted(Path(folder).glob("resampled_*/[!.]*"))]
    cleaned = {kind: {key: cfg.get(key) for key in ("model", "train_dataloader", "optim_wrapper", "train_cfg")}
               for kind, cfg in configs.items()}
    return {"configs": digest(json.dumps(cleaned, default=str, sort_keys=True)), "synthesised images": digest(names),
            "max_iters": configs["joint"].train_cfg.max_iters,
            "batch_size": configs["joint"].train_dataloader.batch_size}


def segmentor(args: list[str], log: Path) -> None:
    """Runs scripts/segmentor.py in a process of its own; what it prints goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with log.open("a") as file:
        code = subprocess.run([sys.executable, "-m", "scripts.segmentor", *args], stdout=file, stderr=subprocess.STDOUT,
                              env={**os.environ, "PYTHONPATH": paths}).returncode
    if code:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        raise InputError(f"{log}: scripts.segmentor ended with code {code}: {lines[-1] if lines else 'no output'}")


def run_folder(args: argparse.Namespace, kind: str, seed: int) -> Path:
    """Where one training keeps its weights, log and metrics."""
    return args.out_dir / "runs" / f"{kind}_seed_{seed}"


def metrics_files(args: argparse.Namespace, kind: str, seed: int) -> dict[str, Path]:
    """Its metrics by split."""
    return {split: run_folder(args, kind, seed) / f"metrics_{split}.json" for split in args.splits}


def run_seed(args: argparse.Namespace, kind: str, seed: int) -> dict[str, dict[str, Any]]:
    """Trains and tests one seed, where that is not done yet; metrics by split."""
    folder = run_folder(args, kind, seed)
    metrics = metrics_files(args, kind, seed)
    todo = [split for split in args.splits if not metrics[split].is_file()]
    if todo:
        options = train_options(args, kind)
        common = [config_path(args, kind), "--work-dir", str(folder), "--seed", str(seed), "--unchecked"]
        if not (folder / "trained").is_file():
            segmentor(["train", *common, *options, "--resume"], folder / "log.txt")
            (folder / "trained").touch()
        weights = (folder / "last_checkpoint").read_text().strip()
        for split in todo:
            segmentor(["test", *common, *options, "--load-from", weights, "--split", split, "--out",
                       str(metrics[split])], folder / "log.txt")
    return {split: json.loads(path.read_text()) for split, path in metrics.items()}


def gallery_items(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Evenly spread synthesised images with their masks, references and filtered masks."""
    images = list_files(args.syn_img_path, IMAGE_SUFFIXES, "--syn-img-path")
    samples = read_records(args.syn_img_path)
    items = []
    for name in list(images)[:: max(1, -(-len(images) // args.gallery))]:
        record = samples.get(name, {})
        reference = find(record.get("reference"), args.data_root)
        filtered = args.filtered_mask_path and args.filtered_mask_path / f"{name}.png"
        mask = next((file for file in (args.mask_path / f"{key}.png" for key in (name, mask_name(name)))
                     if file.is_file()), None)
        items.append({
            "name": name,
            "caption": record.get("prompt", ""),
            "mask": read_mask(mask) if mask else None,
            "reference": Image.open(reference) if reference else None,
            "image": Image.open(images[name]),
            "filtered": read_mask(filtered) if filtered and filtered.is_file() else None,
        })
    return items


def find(name: str | None, root: str | None) -> Path | None:
    """A recorded file, as it is or below the data set's folder; None where it is not there."""
    places = [Path(name), Path(root or ".", name)] if name else []
    return next((path for path in places if path.is_file()), None)


def write_page(args: argparse.Namespace, runs: dict[str, list[dict[str, dict[str, Any]]]], settings: dict[str, Any]
               ) -> dict[str, Any]:
    """Writes comparison.json and comparison.html; returns the comparisons by split."""
    results, plots = {}, {}
    for split in args.splits:
        baseline, joint = ([run[split] for run in runs[kind]] for kind in KINDS)
        results[split] = compare(baseline, joint)
        plots[split] = [seeds_figure(baseline, joint, SCORES), classes_figure(results[split]["classes"])]
    given = {key: str(value) for key, value in vars(args).items() if value is not None}
    write_json({"options": given, "settings": settings, "results": results, "runs": runs},
               args.out_dir / "comparison.json")
    figures = {"What the filter kept": args.filtered_mask_path and args.filtered_mask_path / "filter_stats.svg",
               "What re-sampling kept": args.synthesised and Path(args.synthesised) / "resample_stats.svg",
               "The synthesised images by themselves": args.evaluation and args.evaluation / "evaluation.svg"}
    reports = {title: embedded_svg(path) for title, path in figures.items() if path and path.is_file()}
    pictures = ""
    if args.gallery and args.syn_img_path:
        table = load_class_table(args.classes) if args.classes else None
        if table is None:
            raise InputError("--syn-img-path: the gallery needs --classes for its colours")
        pictures = gallery(gallery_items(args), table.names, table.palette)
    facts = {**given, "max_iters": f"{settings['max_iters']}, of {settings['batch_size']} images, both trainings"}
    with atomic_path(args.out_dir / "comparison.html") as path:
        path.write_text(page(results, plots, facts, pictures, reports))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    settings = check_equal_effort(args)
    check_writable(args.out_dir, "--out-dir")
    path = args.out_dir / "settings.json"
    if path.is_file() and (changed := [key for key, value in json.loads(path.read_text()).items()
                                       if settings.get(key) != value]):
        raise InputError(f"--out-dir {args.out_dir}: holds runs with other {', '.join(changed)}; name another folder")
    write_json(settings, path)
    todo = [(kind, seed) for seed in range(args.seeds) for kind in KINDS]
    if not all(path.is_file() for job in todo for path in metrics_files(args, *job).values()):
        check_data(args)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = pool.map(lambda job: run_seed(args, *job), todo)
        done = dict(zip(todo, tqdm(jobs, "trainings", len(todo), unit="run"), strict=True))
    runs = {kind: [done[kind, seed] for seed in range(args.seeds)] for kind in KINDS}
    for split, result in write_page(args, runs, settings).items():
        for name in SCORES:
            entry = result["scores"][name]
            interval = [f"{100 * entry['difference'][end]:+.2f}" if entry["difference"][end] is not None else "?"
                        for end in ("low", "high")]
            print(f"{split:8} {name:4}  real {100 * entry['baseline']['mean']:6.2f}  "
                  f"joint {100 * entry['joint']['mean']:6.2f}  difference {100 * entry['difference']['mean']:+.2f} "
                  f"(95 %: {' to '.join(interval)})")
    print(f"page: {args.out_dir / 'comparison.html'}")


if __name__ == "__main__":
    cli.run(main)

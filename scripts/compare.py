"""Trains a segmentor with and without synthesized images, over several seeds, and says whether they helped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cldm.synthesis.records import read_records
from common import command as cli
from common.classes import load_class_table
from common.config_options import ConfigOptions
from common.converters import integer, pixels
from common.errors import InputError
from common.files import check_writable, digest, only_writer, room_for
from common.options import add_options, flag_of
from common.pairing import IMAGE_SUFFIXES, list_files
from common.schema import one_line
from common.stamps import Contents
from evaluation.comparison import SCORES
from evaluation.comparison_page import gallery_of, read_svg, write_comparison
from evaluation.runs import KINDS, Comparison
from gss.weights import read_state_dict
from segmentation.config import entries
from segmentation.data_check import LOADERS, check_files
from segmentation.options import SegmentorOptions, TestOptions, TrainOptions
from segmentation.provenance import TEST, TRAIN, data_files, hash_of_settings, named_files
from segmentation.testing import test_config
from segmentation.training import training_config

DESCRIPTION = """Trains a segmentor on real images alone and jointly with synthesized ones, over several seeds with
equal iterations, tests both on the same held-out images, and writes comparison.json and comparison.html, one page with
tables, plots and a gallery. A stopped comparison goes on with the same command; seeds or splits may be added. Runs that
are identical, or made from other files or settings than those of now, are refused. A training that was stopped goes on
to the weights of an unbroken one, as scripts/segmentor.py --help says.

  python -m scripts.compare configs/mmseg/tiny.py --data-root data --classes MBRSC --synthesized out/resampled \\
      --seeds 5 --max-iters 1000 --splits test target --out-dir out/comparison \\
      --syn-img-path out/images --mask-path data/label_train --filtered-mask-path out/filtered"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("config", help="mmseg config of the baseline, trained on real images")
    parser.add_argument("--joint-config", help="config of the joint training (default: the same, with --synthesized)")
    parser.add_argument("--synthesized", help="folder with resampled_img and resampled_label")
    parser.add_argument(
        "--repeat", type=integer(1, 10**6), default=10, help="how often a real pair counts in joint training"
    )
    parser.add_argument("--data-root", help="data set's folder (default: the config's)")
    parser.add_argument("--classes", help="class table, by name or path to a classes.json (default: the config's)")
    parser.add_argument("--splits", nargs="+", default=["test"], help="test sets: img_<split>, label_<split>")
    parser.add_argument("--seeds", type=integer(1, 1000), default=5, help="number of seeds: 0, 1, ...")
    parser.add_argument("--max-iters", type=integer(1), help="iterations of every training (default: the config's)")
    parser.add_argument("--crop-size", type=pixels, help="side of training crops (default: the config's)")
    parser.add_argument("--pretrained", help="backbone weights: a file, or none (default: the config's)")
    add_options(parser, ConfigOptions)
    parser.add_argument("--out-dir", type=Path, required=True, help="folder for runs, comparison.json and the page")
    parser.add_argument("--jobs", type=integer(1, 256), default=1, help="trainings at once on this machine")
    parser.add_argument("--syn-img-path", type=Path, help="gallery: synthesized images, with samples.jsonl")
    parser.add_argument("--mask-path", type=Path, help="gallery: masks that they were synthesized from")
    parser.add_argument("--filtered-mask-path", type=Path, help="gallery: masks that filter.sh wrote")
    parser.add_argument("--evaluation", type=Path, help="scripts/evaluate_samples.py's --out-dir, to show its figure")
    parser.add_argument(
        "--gallery", type=integer(0, 1000), default=12, help="images in the gallery, evenly spread over all"
    )
    args = parser.parse_args(argv)
    cli.taken(ConfigOptions, args)
    if not (args.joint_config or args.synthesized):
        raise InputError("give --synthesized DIR (resample.sh's --out-dir), or --joint-config")
    for option in ("syn_img_path", "mask_path", "filtered_mask_path", "evaluation"):
        folder = getattr(args, option)
        if folder and not folder.is_dir():
            raise InputError(f"--{option.replace('_', '-')} {folder}: no such folder")
    if args.gallery and args.syn_img_path and not args.mask_path:
        raise InputError("--syn-img-path: the gallery needs --mask-path too")
    for split in args.splits:
        if args.splits.count(split) > 1 or split in ("", ".", "..") or "/" in split or not split.isprintable():
            raise InputError(f"--splits {one_line(split)}: name each test set once, by what follows img_ and label_")
    return args


def given_options(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """What a kind's trainings and tests have in common, by field of ``SegmentorOptions``."""
    joint = kind == "joint" and bool(args.synthesized)
    return {
        "data_root": args.data_root,
        "classes": args.classes,
        "max_iters": args.max_iters,
        "crop_size": args.crop_size,
        "pretrained": args.pretrained,
        "synthesized": args.synthesized if joint else None,
        "repeat": args.repeat if joint else None,
    }


def segmentor_options(args: argparse.Namespace, kind: str) -> list[str]:
    """Options of scripts/segmentor.py for a kind; ``--cfg-options`` as the user wrote them, never formatted again."""
    given = given_options(args, kind).items()
    options = [f"{flag_of(SegmentorOptions, name)}={value}" for name, value in given if value is not None]
    options += ["--trust-config"] if args.trust_config else []
    return [*options, *(["--cfg-options", *args.cfg_options] if args.cfg_options else [])]


def config_path(args: argparse.Namespace, kind: str) -> str:
    """The config of a kind of training."""
    return str(args.joint_config if kind == "joint" and args.joint_config else args.config)


def shared_options(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """As ``given_options``, with the config and its settings: what ``TrainOptions`` and ``TestOptions`` take."""
    read = {"cfg_options": args.cfg_options, "trust_config": args.trust_config}
    return {"config": config_path(args, kind), **read, **given_options(args, kind)}


def config_of_test(args: argparse.Namespace, split: str) -> Config:
    """The config of a baseline's test."""
    return test_config(TestOptions(split=split, **shared_options(args, "baseline")))


def training_configs(args: argparse.Namespace) -> dict[str, Config]:
    """Both kinds' configs.

    Raises:
        InputError: they differ in more than data, which would be unfair, or not even in data.
    """
    configs = {kind: training_config(TrainOptions(**shared_options(args, kind))) for kind in KINDS}
    for what, value in (
        ("train_cfg.max_iters", lambda cfg: cfg.train_cfg.max_iters),
        ("train_dataloader.batch_size", lambda cfg: cfg.train_dataloader.batch_size),
        ("model", lambda cfg: cfg.model),
        ("optim_wrapper", lambda cfg: cfg.optim_wrapper),
        ("param_scheduler", lambda cfg: cfg.get("param_scheduler")),
        ("custom_hooks", lambda cfg: cfg.get("custom_hooks")),
    ):
        before, after = (value(configs[kind]) for kind in KINDS)
        if before != after:
            raise InputError(f"{args.config} and {args.joint_config}: {what} differs; both trainings must match")
    real, joint = (list(entries(configs[kind].train_dataloader, "MaskDataset")) for kind in KINDS)
    for folder in sorted({entry.synthesized for entry in joint if entry.get("synthesized")}):
        list_files(Path(folder) / "resampled_img", IMAGE_SUFFIXES, "--synthesized")
    if any(entry.get("synthesized") for entry in real):
        raise InputError(f"{args.config}: the baseline has synthesized images; name a config without them")
    if configs["baseline"].train_dataloader == configs["joint"].train_dataloader:
        raise InputError(f"{args.joint_config}: trains on the same data as the baseline; add --synthesized DIR")
    return configs


def plan(args: argparse.Namespace, configs: dict[str, Config]) -> Comparison:
    """All trainings and tests, and what they are made from."""
    contents = Contents(args.out_dir / ".contents.json")
    files = {kind: data_files(configs[kind].train_dataloader) for kind in KINDS}
    real = set(files["baseline"])
    made_from = {}
    for kind, cfg in configs.items():
        made_from[kind] = {
            "max_iters": cfg.train_cfg.max_iters,
            "batch_size": cfg.train_dataloader.batch_size,
            "settings": hash_of_settings(cfg, TRAIN),
            "weights or other files of the config": contents.all(named_files(cfg, TRAIN)),
            "real images and masks": contents.all(path for path in files[kind] if path in real),
            "synthesized images and masks": contents.all(path for path in files[kind] if path not in real),
        }
    test_sets = {}
    for split in args.splits:
        cfg = config_of_test(args, split)
        test_sets[split] = digest(
            hash_of_settings(cfg, TEST),
            contents.all(named_files(cfg, TEST)),
            contents.all(data_files(cfg.test_dataloader)),
        )
    contents.save()
    return Comparison(
        args.out_dir,
        args.seeds,
        {kind: config_path(args, kind) for kind in KINDS},
        {kind: segmentor_options(args, kind) for kind in KINDS},
        made_from,
        test_sets,
        read_state_dict,
    )


def check_data(args: argparse.Namespace, configs: dict[str, Config]) -> None:
    """Opens all files once, so that not every training does."""
    for kind in KINDS:
        check_files(configs[kind], LOADERS["train"])
    for split in args.splits:
        check_files(config_of_test(args, split), LOADERS["test"])


def pictures_of(args: argparse.Namespace, cfg: Config) -> str:
    """The page's gallery, if asked for; made before the work, as damaged pictures should not end it."""
    if not (args.gallery and args.syn_img_path):
        return ""
    classes = args.classes or next((entry.classes for entry in entries(cfg.train_dataloader, "MaskDataset")), None)
    if classes is None:
        raise InputError("--syn-img-path: the gallery needs --classes for its colors")
    records = {name: record.model_dump() for name, record in read_records(args.syn_img_path).items()}
    return gallery_of(
        args.syn_img_path,
        args.mask_path,
        args.filtered_mask_path,
        args.gallery,
        load_class_table(classes),
        records,
        args.data_root,
    )


def reports_of(args: argparse.Namespace) -> dict[str, bytes]:
    """Figures that other commands wrote, by title."""
    figures = {
        "What the filter kept": args.filtered_mask_path and args.filtered_mask_path / "filter_stats.svg",
        "What re-sampling kept": args.synthesized and Path(args.synthesized) / "resample_stats.svg",
        "The synthesized images by themselves": args.evaluation and args.evaluation / "evaluation.svg",
    }
    return {title: read_svg(path) for title, path in figures.items() if path and path.is_file()}


def run_comparison(args: argparse.Namespace, configs: dict[str, Config]) -> None:
    """Does what is left to do and writes the page; prints the differences."""
    comparison = plan(args, configs)
    comparison.check()
    pictures, reports = pictures_of(args, configs["baseline"]), reports_of(args)
    if not comparison.is_done():
        check_data(args, configs)
    outcomes = comparison.run(args.jobs)
    given = {key: str(value) for key, value in vars(args).items() if value is not None and key != "cfg_options"}
    made_from = comparison.made_from["joint"]
    facts = {**given, "max_iters": f"{made_from['max_iters']}, of {made_from['batch_size']} images, both trainings"}
    runs = {kind: [outcome.metrics for outcome in done] for kind, done in outcomes.items()}
    results = write_comparison(args.out_dir, runs, facts, {**made_from, **comparison.test_sets}, pictures, reports)
    for split, result in results.items():
        for name in SCORES:
            entry = result["scores"][name]
            interval = [
                f"{100 * entry['difference'][end]:+.2f}" if entry["difference"][end] is not None else "?"
                for end in ("low", "high")
            ]
            print(
                f"{split:8} {name:4}  real {100 * entry['baseline']['mean']:6.2f}  "
                f"joint {100 * entry['joint']['mean']:6.2f}  difference {100 * entry['difference']['mean']:+.2f} "
                f"(95 %: {' to '.join(interval)})"
            )
    print(f"page: {args.out_dir / 'comparison.html'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    configs = training_configs(args)
    check_writable(args.out_dir, "--out-dir")
    with room_for("--out-dir", args.out_dir), only_writer(args.out_dir, "--out-dir"):
        run_comparison(args, configs)


if __name__ == "__main__":
    cli.run(main)

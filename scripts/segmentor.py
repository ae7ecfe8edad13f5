"""Trains or tests a segmentor: mmengine's Runner on an mmseg config; or predicts with one (``scripts.predict``)."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import CheckpointLoader

from common import command as cli
from common import converters
from common.converters import integer
from common.errors import InputError
from common.files import check_writable, only_writer, room_for, write_json
from scripts import predict
from segmentation import checkpoint, config
from segmentation.config import stage
from segmentation.confusion import write_confusion
from segmentation.files import LOADERS, check_files
from segmentation.rehearsal import rehearse
from segmentation.runner import SegmentorRunner, TestRunner, join_processes, nothing_left
from segmentation.saving import last_weights
from segmentation.validation import METRICS, chosen_on_test, log_to_tensorboard, set_validation
from segmentation.views import test_from_views

__all__ = ["LOADERS", "check_files", "main", "metrics_report", "parse_args", "resolve"]

DESCRIPTION = """Trains or tests a segmentor with mmengine's Runner.

  python -m scripts.segmentor train configs/mmseg/tiny.py --data-root data/mbrsc --classes MBRSC
  python -m scripts.segmentor test configs/mmseg/tiny.py --data-root data/mbrsc --classes MBRSC \\
      --load-from work_dirs/tiny/iter_1000.pth
Masks for images that have none: python -m scripts.segmentor predict --help
Joint training: add --synthesized DIR (the --out-dir of resample.sh) --repeat 10. Several processes, with GPUs or none:
  torchrun --nproc-per-node 4 -m scripts.segmentor train CONFIG --launcher pytorch
A stopped training goes on with --resume and gives the weights of an unbroken one: to the bit on a CPU, and on a GPU
with --cfg-options randomness.deterministic=True. Not with augmentation that has random numbers of its own (Albu), nor
with loops, hooks or models of other packages that keep a state beside their weights."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("task", choices=("train", "test", "predict"), help="what to do")
    parser.add_argument("config", help="mmseg config, e.g. configs/mmseg/pspnet_r50.py; it is Python, and runs")
    parser.add_argument(
        "--work-dir", type=Path, default=None, help="folder for weights and logs (default: work_dirs/<config>)"
    )
    parser.add_argument(
        "--load-from", default=None, help="weights to test, or to start from: those that fit; others are listed"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last whole weights in --work-dir, or from --load-from; with none, start",
    )
    parser.add_argument(
        "--pretrained", default=None, help="backbone weights: a file, an address, or none (default: the config's)"
    )
    parser.add_argument("--data-root", default=None, help="data set's folder (default: the config's)")
    parser.add_argument("--classes", default=None, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    parser.add_argument("--synthesized", default=None, help="folder with resampled_img and resampled_label to add")
    parser.add_argument("--repeat", type=integer(1), default=None, help="how often real training pairs count")
    parser.add_argument("--split", default=None, help="test on img_<split>, label_<split> (default: the config's)")
    parser.add_argument(
        "--head-classes",
        type=integer(2, 255),
        help="outputs of the heads (default: one a class; published FUSU: 18 for its 17 names)",
    )
    parser.add_argument(
        "--val-split",
        help="validate while training on img_<split>, label_<split>, or none (default: "
        "the config's; the best weights are kept beside the last)",
    )
    parser.add_argument(
        "--val-interval",
        type=integer(1, 10**9),
        help="iterations between two validations (default: the config's, else as often as it saves)",
    )
    parser.add_argument(
        "--best",
        choices=tuple(METRICS),
        help="score that the best weights are chosen by (default: the config's, else mIoU)",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write losses and scores for TensorBoard, too")
    parser.add_argument("--crop-size", type=converters.pixels, help="side of training crops (default: the config's)")
    parser.add_argument("--max-iters", type=integer(1), help="training iterations (default: the config's)")
    parser.add_argument(
        "--seed",
        type=integer(0, 2**31 - 1),
        default=None,
        help="seed of weights, order and augmentation (default: the config's, else 0)",
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="test: metrics as JSON (default: <work-dir>/metrics.json)"
    )
    parser.add_argument(
        "--confusion",
        action="store_true",
        help="test: which class is taken for which, as <out>_confusion.svg and .json",
    )
    parser.add_argument("--tta", action="store_true", help="test: the mean over scaled, mirrored views of each image")
    parser.add_argument("--unchecked", action="store_true", help="do not open every image and mask before the work")
    config.add_cfg_options(parser)
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default=None,
        help="how jobs start (default: pytorch if torchrun started this command, else none)",
    )
    parser.add_argument("--local-rank", type=integer(0), default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.task == "predict":  # with its own options, see main
        parser.error("predict: write it as the first word, then its options")
    for task, option in (
        ("train", "resume"),
        ("train", "val_split"),
        ("train", "val_interval"),
        ("train", "best"),
        ("test", "split"),
        ("test", "out"),
        ("test", "confusion"),
        ("test", "tta"),
    ):
        if args.task != task and getattr(args, option):
            parser.error(f"--{option.replace('_', '-')}: is for {task} only")
    return args


def resolve(args: argparse.Namespace) -> Config:
    """The config with everything that the command line sets; refused before work starts where it cannot run."""
    cfg = config.load_config(args.config, args.cfg_options, args.trust_config)
    config.set_data(cfg, args.data_root, args.classes, args.synthesized, args.repeat, args.split)
    config.check_classes(cfg, args.head_classes)
    if args.crop_size:
        config.set_crop_size(cfg, args.crop_size)
    if args.max_iters:
        config.set_max_iters(cfg, args.max_iters)
    set_validation(cfg, args.val_split, args.val_interval, args.best)
    if args.tensorboard:
        log_to_tensorboard(cfg)
    if args.pretrained or args.task == "test":
        config.set_pretrained(cfg, None if args.task == "test" or args.pretrained == "none" else args.pretrained)
    checkpoint.allow_fetch(args.load_from)
    checkpoint.check_sources(cfg, training=args.task == "train")
    cfg.work_dir = str(args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}")
    cfg.load_from = args.load_from
    cfg.resume = args.resume
    args.launcher = args.launcher or ("pytorch" if os.environ.get("TORCHELASTIC_RUN_ID") else "none")
    cfg.launcher = args.launcher  # a config's own launcher says how its author started it
    config.set_seed(cfg, args.seed)
    config.save_between_updates(cfg)
    for evaluator in config.nodes([cfg.get("val_evaluator"), cfg.get("test_evaluator")], "IoUMetric"):
        evaluator.type = "ClassIoUMetric"  # the same scores, by class and not rounded
    if args.confusion:
        scores = list(config.nodes(cfg.get("test_evaluator"), "ClassIoUMetric"))
        if len(scores) != 1:
            raise InputError(f"{cfg.filename}: --confusion: its test_evaluator is no single IoUMetric")
        scores[0].confusion = True
    if args.tta:
        test_from_views(cfg)
    return cfg


def set_resumed(cfg: Config, args: argparse.Namespace) -> None:
    """Where a resumed training goes on, with its own seed; nothing there is a start.

    Raises:
        InputError: another seed is given.
    """
    weights = args.load_from or last_weights(Path(cfg.work_dir))
    cfg.load_from, cfg.resume = (str(weights), True) if weights else (None, False)
    if not weights:
        return
    content = CheckpointLoader.load_checkpoint(cfg.load_from, "cpu")
    meta = content.get("meta") if isinstance(content, dict) else None
    seed = meta.get("seed") if isinstance(meta, dict) else None
    if type(seed) is int and 0 <= seed < 2**31:
        if args.seed not in (None, seed):
            raise InputError(
                f"--seed {args.seed}: {weights} was trained with seed {seed}; leave --seed out, or name "
                "another --work-dir"
            )
        config.set_seed(cfg, seed)


def metrics_report(scores: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Scores in 0..1: OA, mIoU, mAcc, and IoU and Acc by class name; nan becomes None.

    Of several test sets, each with classes of its own, the same for each and the harmonic mean of their mIoU.
    """
    scores = {key: None if value != value else float(value) for key, value in scores.items()}
    if sets := [key.removesuffix("/mIoU") for key in scores if key.endswith("/mIoU")]:
        parts = {
            name: {
                key.removeprefix(f"{name}/"): math.nan if value is None else value
                for key, value in scores.items()
                if key.startswith(f"{name}/")
            }
            for name in sets
        }
        reports = {name: metrics_report(part) for name, part in parts.items()}
        return {"h_mean": scores["h_mean"], "sets": reports, **facts}
    names = [key.removeprefix("IoU/") for key in scores if key.startswith("IoU/")]
    return {
        "OA": scores.get("aAcc"),
        "mIoU": scores.get("mIoU"),
        "mAcc": scores.get("mAcc"),
        "classes": {name: {"IoU": scores[f"IoU/{name}"], "Acc": scores[f"Acc/{name}"]} for name in names},
        **facts,
    }


def train(cfg: Config, args: argparse.Namespace) -> None:
    """Trains; weights and logs go to ``cfg.work_dir``."""
    if not (cfg.get("train_dataloader") and cfg.get("train_cfg") and cfg.get("optim_wrapper")):
        raise InputError(f"{cfg.filename}: nothing to train with: needs train_dataloader, train_cfg and optim_wrapper")
    if args.resume:
        set_resumed(cfg, args)
    first = args.launcher == "none" or int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0
    if first and (told := chosen_on_test(cfg)):
        print(told, file=sys.stderr)
    rehearse(cfg, "train")
    folder = check_writable(cfg.work_dir, "--work-dir")
    with only_writer(folder, "--work-dir") if first else contextlib.nullcontext(), room_for("--work-dir", folder):
        if args.resume:  # a training may have ended meanwhile
            set_resumed(cfg, args)
        join_processes(args.launcher)
        with nothing_left(), stage(cfg, f"training (see the log in {folder})"):
            runner = SegmentorRunner.from_cfg(cfg)
            runner.train()
        last = Path(cfg.work_dir, "last_checkpoint")
        if is_main_process() and last.is_file():
            print(f"weights: {last.read_text().strip()}")
            if best := runner.message_hub.runtime_info.get("best_ckpt"):
                print(f"best on the validation images ({runner.message_hub.get_info('best_score'):.4f}): {best}")


def test(cfg: Config, out: Path) -> dict[str, Any]:
    """Tests ``cfg.load_from`` and writes the metrics to ``out``."""
    if not cfg.load_from and cfg.model.type != "MaskigeReconstruction":  # that one has nothing to learn
        raise InputError("--load-from: name the weights to test")
    if not (cfg.get("test_dataloader") and cfg.get("test_cfg") is not None and cfg.get("test_evaluator")):
        raise InputError(f"{cfg.filename}: nothing to test with: needs test_dataloader, test_cfg and test_evaluator")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; name a file")
    for key in (
        "train_dataloader",
        "train_cfg",
        "optim_wrapper",
        "param_scheduler",
        "val_dataloader",
        "val_cfg",
        "val_evaluator",
    ):
        cfg.pop(key, None)
    cfg.resume = False
    rehearse(cfg, "test")
    check_writable(out.parent, "--out")
    folder = check_writable(cfg.work_dir, "--work-dir")
    with room_for("--work-dir", folder):
        join_processes(cfg.launcher)
        with nothing_left(), stage(cfg, f"testing (see the log in {folder})"):
            runner = TestRunner.from_cfg(cfg)
            scores = runner.test()
    report = metrics_report(
        scores, images=len(runner.test_dataloader.dataset), checkpoint=str(cfg.load_from), config=str(cfg.filename)
    )
    if is_main_process():
        write_json(report, out)
        values = {name: part["mIoU"] for name, part in report.get("sets", {}).items()}
        values |= {name: report[name] for name in ("OA", "mIoU", "mAcc", "h_mean") if name in report}
        shown = (f"{name} {'none' if value is None else format(value, '.4f')}" for name, value in values.items())
        print("  ".join(shown) + f"  ({out})")
        for metric in runner.test_evaluator.metrics:
            if (matrix := getattr(metric, "matrix", None)) is not None:
                files = write_confusion(
                    matrix, list(metric.dataset_meta["classes"]), out.with_suffix("").with_name(f"{out.stem}_confusion")
                )
                print(f"confusion of classes: {files[1]}, {files[0]}")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "predict":
        predict.main(argv[1:])
        return
    args = parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
    cfg = resolve(args)
    if not args.unchecked:
        check_files(cfg, LOADERS[args.task])
    if args.task == "train":
        train(cfg, args)
    else:
        test(cfg, Path(args.out or Path(cfg.work_dir, "metrics.json")))


if __name__ == "__main__":
    cli.run(main)

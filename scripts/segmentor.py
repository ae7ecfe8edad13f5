"""Trains or tests a segmentor: mmengine's Runner on an mmseg config."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmseg.registry import DATASETS

from common.errors import InputError
from common.files import check_writable, write_json
from common.pairing import Pair, listed
from scripts import cli
from scripts.cli import integer
from scripts.pairs import find_faults
from segmentation import checkpoint, config

DESCRIPTION = """Trains or tests a segmentor with mmengine's Runner.

  python -m scripts.segmentor train configs/mmseg/tiny.py --data-root data/mbrsc --classes MBRSC
  python -m scripts.segmentor test configs/mmseg/tiny.py --data-root data/mbrsc --classes MBRSC \\
      --load-from work_dirs/tiny/iter_1000.pth
Joint training: add --synthesised DIR (the --out-dir of resample.sh) --repeat 10. Several GPUs:
  torchrun --nproc-per-node 4 -m scripts.segmentor train CONFIG --launcher pytorch"""

LOADERS = {"train": ("train_dataloader", "val_dataloader"), "test": ("test_dataloader",)}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("task", choices=("train", "test"), help="what to do")
    parser.add_argument("config", help="mmseg config, e.g. configs/mmseg/pspnet_r50.py")
    parser.add_argument("--work-dir", default=None, help="folder for weights and logs (default: work_dirs/<config>)")
    parser.add_argument("--load-from", default=None, help="weights to start from, or to test")
    parser.add_argument("--resume", action="store_true", help="go on from the last weights in --work-dir")
    parser.add_argument("--pretrained", default=None,
                        help="backbone weights: a file, an address, or none (default: the config's)")
    parser.add_argument("--data-root", default=None, help="data set's folder (default: the config's)")
    parser.add_argument("--classes", default=None, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    parser.add_argument("--synthesised", default=None, help="folder with resampled_img and resampled_label to add")
    parser.add_argument("--repeat", type=int, default=None, help="how often real training pairs count")
    parser.add_argument("--split", default=None, help="test on img_<split>, label_<split> (default: the config's)")
    parser.add_argument("--crop-size", type=integer(1), help="side of training crops (default: the config's)")
    parser.add_argument("--max-iters", type=integer(1), help="training iterations (default: the config's)")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of weights, order and augmentation")
    parser.add_argument("--out", default=None, help="test: metrics as JSON (default: <work-dir>/metrics.json)")
    parser.add_argument("--unchecked", action="store_true", help="do not open every image and mask before the work")
    config.add_cfg_options(parser)
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="how jobs start")
    parser.add_argument("--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def resolve(args: argparse.Namespace) -> Config:
    """The config with everything that the command line sets; refused before work starts where it cannot run."""
    cfg = config.load_config(args.config, args.cfg_options)
    config.set_data(cfg, args.data_root, args.classes, args.synthesised, args.repeat, args.split)
    config.check_classes(cfg)
    if args.crop_size:
        config.set_crop_size(cfg, args.crop_size)
    if args.max_iters:
        config.set_max_iters(cfg, args.max_iters)
    if args.pretrained or args.task == "test":
        config.set_pretrained(cfg, None if args.task == "test" or args.pretrained == "none" else args.pretrained)
    checkpoint.allow_fetch(args.load_from)
    checkpoint.check_addresses(cfg)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}"
    cfg.load_from = args.load_from
    cfg.resume = args.resume
    cfg.launcher = args.launcher
    cfg.randomness = {"seed": args.seed, **(cfg.get("randomness") or {})}
    for evaluator in config.nodes(cfg.get("test_evaluator"), "IoUMetric"):
        evaluator.type = "ClassIoUMetric"  # the same scores, by class and not rounded
    return cfg


def check_files(cfg: Config, loaders: Sequence[str]) -> None:
    """Opens every image and mask of the ``MaskDataset`` entries once: not in the middle of a training.

    Raises:
        InputError: files that are damaged, or ids that are no classes; the first ones by name.
    """
    for entry in config.nodes([cfg.get(name) or {} for name in loaders], "MaskDataset"):
        dataset = DATASETS.build({**entry, "lazy_init": True})
        count = len(dataset.metainfo["classes"]) + bool(dataset.reduce_zero_label)
        files = dict.fromkeys((Path(item["img_path"]), Path(item["seg_map_path"])) for item in dataset.load_data_list())
        pairs = [Pair(image.stem, image, mask) for image, mask in files]
        if faults := list(filter(None, find_faults(pairs, count, "checking files"))):
            raise InputError(listed(faults))


def metrics_report(scores: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Scores in 0..1: OA, mIoU, mAcc, and IoU and Acc by class name; nan becomes None."""
    scores = {key: None if value != value else float(value) for key, value in scores.items()}
    names = [key.removeprefix("IoU/") for key in scores if key.startswith("IoU/")]
    return {
        "OA": scores.get("aAcc"),
        "mIoU": scores.get("mIoU"),
        "mAcc": scores.get("mAcc"),
        "classes": {name: {"IoU": scores[f"IoU/{name}"], "Acc": scores[f"Acc/{name}"]} for name in names},
        **facts,
    }


def train(cfg: Config) -> None:
    """Trains; weights and logs go to ``cfg.work_dir``."""
    check_writable(cfg.work_dir, "--work-dir")
    try:
        Runner.from_cfg(cfg).train()
    except URLError as error:
        raise InputError(f"{cfg.filename}: backbone weights {cfg.model.get('pretrained')} cannot be fetched "
                         f"({error.reason}); give a file with --pretrained, or --pretrained none") from error
    last = Path(cfg.work_dir, "last_checkpoint")
    if is_main_process() and last.is_file():
        print(f"weights: {last.read_text().strip()}")


def test(cfg: Config, out: Path) -> dict[str, Any]:
    """Tests ``cfg.load_from`` and writes the metrics to ``out``."""
    if not cfg.load_from and cfg.model.type != "MaskigeReconstruction":  # that one has nothing to learn
        raise InputError("--load-from: name the weights to test")
    check_writable(out.parent, "--out")
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler",
                "val_dataloader", "val_cfg", "val_evaluator"):
        cfg.pop(key, None)
    runner = Runner.from_cfg(cfg)
    scores = runner.test()
    report = metrics_report(scores, images=len(runner.test_dataloader.dataset), checkpoint=str(cfg.load_from),
                            config=str(cfg.filename))
    if is_main_process():
        write_json(report, out)
        print(f"OA {report['OA']:.4f}  mIoU {report['mIoU']:.4f}  mAcc {report['mAcc']:.4f}  ({out})")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = resolve(args)
    if not args.unchecked:
        check_files(cfg, LOADERS[args.task])
    if args.task == "train":
        train(cfg)
    else:
        test(cfg, Path(args.out or Path(cfg.work_dir, "metrics.json")))


if __name__ == "__main__":
    cli.run(main)

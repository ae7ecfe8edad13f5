r"""Trains a first stage (AutoencoderKL) from nothing on folders of images, labeled or not.

  python -m scripts.train_vae --config configs/first_stage/mbrsc_f4.yaml --images data/img_train data/ref_img \
      --out runs/first_stage

Any value of the configuration can be set by key=value: data.crop=256 training.max_steps=50000
At the end, --out holds first_stage.safetensors (averaged weights under the published names) and first_stage.yaml (with
the measured scale_factor): copy its fields into a model's YAML.

Exit codes: 0 trained, 1 the loss is not a number, 2 bad input, 143 saved and stopped by SIGTERM, 130 by Ctrl-C.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from common import command as cli
from common.configuration import read_configuration
from common.devices import pick_device
from common.errors import InputError
from ldm.first_stage.options import Options, read_options
from ldm.first_stage.run import CONFIG_NAME, measure, train
from ldm.training.checkpoints import TrainingDiverged
from ldm.training.resume import resume_checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BASE, MODEL = CONFIGS / "train" / "vae.yaml", CONFIGS / "first_stage" / "mbrsc_f4.yaml"


def arguments() -> cli.Parser:
    """The command line."""
    options = cli.parser(__doc__ or "")
    add = options.add_argument
    add("--images", type=Path, nargs="+", required=True, metavar="DIR", help="folders of images; all below are taken")
    add(
        "--val-images",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders to validate on instead of a share",
    )
    add(
        "--config", type=Path, nargs="+", default=[], metavar="YAML", help=f"first stage and training; over {BASE.name}"
    )
    add("--out", type=Path, metavar="RUN", help="the run's folder")
    add("-r", "--resume", type=Path, metavar="RUN", help="go on with a run: its folder, or one of its checkpoints")
    add("--pretrain-path", type=Path, metavar="CKPT", help="weights to start from")
    add("--measure", action="store_true", help="write the weights and scale of --resume as it stands; no training")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("overrides", nargs="*", metavar="key=value", help="any value of the configuration")
    return options


def read(config: Sequence[Path], resume: Path | None, overrides: Sequence[str]) -> Options:
    """The options: of the run to go on with, or of the default's file and ``--config``; then the settings."""
    saved = [] if resume is None else [resume_checkpoint(resume).parent.parent / CONFIG_NAME]
    merged = read_configuration([*(saved or [BASE]), *(config or ([] if saved else [MODEL]))], overrides)
    return read_options(merged.values, merged.source)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = arguments().parse_intermixed_args(argv)
    for taken in (args.images, args.val_images, args.config):  # settings that follow an option of several words
        settings = [path for path in taken if "=" in str(path) and not path.exists()]
        args.overrides += map(str, settings)
        taken[:] = [path for path in taken if path not in settings]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if (args.out is None) == (args.resume is None):
        raise InputError("--out and --resume: give one of them, a new run's folder or the run to go on with")
    if args.pretrain_path and args.resume:
        raise InputError("--pretrain-path with --resume: a run goes on with its own weights; leave one out")
    if args.measure and args.resume is None:
        raise InputError("--measure: name the run by --resume")
    options = read(args.config, args.resume, args.overrides)
    device = pick_device(args.device)
    if args.measure:
        measure(options, args.images, args.val_images, args.resume, device)
        return 0
    folder = args.out if args.resume is None else resume_checkpoint(args.resume).parent.parent
    if args.out is not None and (folder / CONFIG_NAME).exists():
        raise InputError(f"--out {folder}: holds a run; go on with it by --resume {folder}, or take another folder")
    try:
        stopped = train(options, args.images, args.val_images, folder, device, args.resume, args.pretrain_path)
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 128 + stopped if stopped else 0


if __name__ == "__main__":
    cli.run(main)

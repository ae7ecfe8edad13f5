r"""Trains TISynth: paints images from masks, references and texts.

  bash train.sh --base configs/train/tisynth.yaml --config_model configs/model/tisynth_v15.yaml -n my_run \
      --data_root DATA --train_txt_file DATA/train_set_items.json --val_txt_file DATA/test_set_items.json \
      --pretrain_path controlnet1.5.ckpt --gpus 0,1,2,3

Any value of the configuration can be set by key=value:
  data.params.batch_size=4 lightning.trainer.max_steps=50000 lightning.trainer.precision=bf16-mixed

Exit codes: 0 trained, 1 the loss is not a number, 2 bad input, 143 saved and stopped by SIGTERM, 130 by Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from cldm.build import load_training_config
from cldm.control_ldm import TrainingDiverged
from cldm.resume import resume_checkpoint
from cldm.training import CONFIG_NAME, train
from cldm.training_options import SEED, TrainingOptions
from common.errors import InputError
from ldm.util import trust
from scripts.cli import add_trust, flag, integer, name, parser, random_seed, run

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BASE, MODEL = CONFIGS / "train" / "tisynth.yaml", CONFIGS / "model" / "tisynth_v15.yaml"  # published


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__ or "")
    add = options.add_argument
    add("-b", "--base", type=Path, nargs="*", metavar="YAML",
        help="training settings: data, rate, trainer; configs/train/tisynth.yaml by default, the run's own to --resume")
    add("--config_model", type=Path, metavar="YAML", help="model settings; configs/model/tisynth_v15.yaml by default")
    add("-n", "--name", type=name, help="name of the run's folder below --logdir; the time by default")
    add("-l", "--logdir", type=Path, default=Path("logs"), help="folder of all runs")
    add("--data_root", metavar="DIR", help="folder that the lists' paths are relative to")
    add("--train_txt_file", metavar="FILE", help="training items as JSON lines")
    add("--val_txt_file", metavar="FILE", help="validation items as JSON lines")
    add("--pretrain_path", type=Path, metavar="CKPT", help="start weights: Stable Diffusion, ControlNet or TISynth")
    add("--allow_mismatch", nargs="+", default=[], metavar="MODULE", help="modules that --pretrain_path need not fit")
    add("--gpus", default="auto", help="auto, cpu, or indices: 0 or 0,1,2,3 (a comma separated list, as published)")
    add("--num_nodes", type=integer(1), default=1, help="machines; start the same command on each by SLURM or torchrun")
    add("--precision", help="32-true, bf16-mixed, 16-mixed, ...: see Lightning; the configuration's by default")
    add("-s", "--seed", type=random_seed,
        help=f"of order, time steps, noise, references, weights; the configuration's by default, or {SEED}")
    add("-t", "--train", type=flag, nargs="?", const=True, default=True, help="train; false is --dry_run")
    add("-r", "--resume", type=Path, metavar="RUN", help="go on with a run: its folder, or one of its checkpoints")
    add("--scale_lr", type=flag, nargs="?", const=True,
        help="rate x batch size x GPUs x accumulation; true by default, the run's own to --resume")
    add("--save_every", type=integer(1), metavar="STEPS",
        help="write last.ckpt every so many steps, too, not at the end of epochs and of training alone")
    add("--skip_invalid", action="store_true", help="leave faulty items out instead of stopping")
    add("--follow_links", action="store_true", help="take files outside --data_root that links below it lead to")
    add_trust(options)
    add("--dry_run", action="store_true", help="check everything, print the plan, and stop")
    add("overrides", nargs="*", metavar="key=value", help="any value of the configuration")
    return options


def main() -> int:
    """Merges the configuration and trains."""
    args = arguments().parse_intermixed_args()
    for taken in (args.allow_mismatch, args.base or []):  # options of several words take settings that follow them, too
        settings = [text for text in taken if "=" in str(text) and not Path(text).exists()]
        args.overrides += map(str, settings)
        taken[:] = [text for text in taken if text not in settings]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.resume is None:
        files = [*(args.base or [BASE]), args.config_model or MODEL]
    else:
        files = [*(args.base or []), *([args.config_model] if args.config_model else [])]
        saved = resume_checkpoint(args.resume).parent.parent / CONFIG_NAME
        files = [saved, *files] if saved.exists() or not files else files
    if wrong := [text for text in args.overrides if "=" not in text]:
        raise InputError(f"{wrong[0]}: not understood; settings are written key=value, options with --")
    trust(args.trust)
    config = load_training_config(files, args.overrides)
    given = TrainingOptions(
        data_root=args.data_root,
        train_list=args.train_txt_file,
        val_list=args.val_txt_file,
        name=args.name,
        logdir=args.logdir,
        resume=args.resume,
        pretrain_path=args.pretrain_path,
        allow=args.allow_mismatch,
        gpus=args.gpus,
        nodes=args.num_nodes,
        precision=args.precision,
        seed=args.seed,
        scale_lr=args.scale_lr,
        save_every=args.save_every,
        skip_invalid=args.skip_invalid,
        follow_links=args.follow_links,
        settings=args.overrides,
    )
    try:
        stopped_by = train(config, given, dry_run=args.dry_run or not args.train)
    except TrainingDiverged as error:
        print(f"error: {error}")
        return 1
    return 128 + stopped_by if stopped_by else 0  # as the shell counts: what follows must not take the run for done


if __name__ == "__main__":
    run(main)

r"""Trains TISynth: paints images from masks, references and texts.

  bash train.sh --base configs/train/tisynth.yaml --config-model configs/model/tisynth_v15.yaml -n my_run \
      --data-root DATA --train-txt-file DATA/train_set_items.json --val-txt-file DATA/test_set_items.json \
      --pretrain-path controlnet1.5.ckpt --gpus 0,1,2,3

Any value of the configuration can be set by key=value, or as an option:
  data.params.batch_size=4 lightning.trainer.max_steps=50000 --data.params.num_workers 2
Options of Lightning's trainer may be written by their names alone, as published: --max_steps 50000 --accelerator gpu

Exit codes: 0 trained, 1 the loss is not a number, 2 bad input, 143 saved and stopped by SIGTERM, 130 by Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cldm.build import load_training_config
from cldm.training.options import SEED, TrainingOptions
from cldm.training.published_line import gpus_of, read_line
from cldm.training.run import CONFIG_NAME, run_time, train
from common.command import Parser, add_trust, parser, run
from common.converters import file_path, flag, integer, name, random_seed
from common.errors import InputError
from common.schema import one_line
from common.trust import trust
from ldm.training.checkpoints import TrainingDiverged
from ldm.training.resume import resume_checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BASE, MODEL = CONFIGS / "train" / "tisynth.yaml", CONFIGS / "model" / "tisynth_v15.yaml"  # published


def arguments() -> Parser:
    """The command line."""
    options = parser(__doc__ or "")
    add = options.add_argument
    add(
        "-b",
        "--base",
        type=Path,
        nargs="*",
        metavar="YAML",
        help="training settings: data, rate, trainer; configs/train/tisynth.yaml by default, the run's own to --resume",
    )
    add("--config-model", type=Path, metavar="YAML", help="model settings; configs/model/tisynth_v15.yaml by default")
    add(
        "-n",
        "--name",
        type=or_none(name),
        nargs="?",
        help="name of the run's folder below --logdir; the time by default",
    )
    add("-l", "--logdir", type=Path, default=Path("logs"), help="folder of all runs")
    add("--data-root", metavar="DIR", help="folder that the lists' paths are relative to")
    add("--train-txt-file", metavar="FILE", help="training items as JSON lines")
    add("--val-txt-file", metavar="FILE", help="validation items as JSON lines")
    add("--pretrain-path", type=Path, metavar="CKPT", help="start weights: Stable Diffusion, ControlNet or TISynth")
    add("--allow-mismatch", nargs="+", default=[], metavar="MODULE", help="modules that --pretrain-path need not fit")
    add("--gpus", default="auto", help="auto, cpu, or indices: 0 or 0,1,2,3 (a comma separated list, as published)")
    add("--num-nodes", type=integer(1), default=1, help="machines; start the same command on each by SLURM or torchrun")
    add("--precision", help="32-true, bf16-mixed, 16-mixed, ...: see Lightning; the configuration's by default")
    add(
        "-s",
        "--seed",
        type=random_seed,
        help=f"of order, time steps, noise, references, weights; the configuration's by default, or {SEED}",
    )
    add("-t", "--train", type=flag, nargs="?", const=True, default=True, help="train; false is --dry-run")
    add(
        "-r",
        "--resume",
        type=or_none(file_path),
        nargs="?",
        metavar="RUN",
        help="go on with a run: its folder, or one of its checkpoints; without either, as published, a new run",
    )
    add(
        "--scale-lr",
        type=flag,
        nargs="?",
        const=True,
        help="rate x batch size x GPUs x accumulation; true by default, the run's own to --resume",
    )
    add("-f", "--postfix", default="", help="put behind the run's name")
    add(
        "--sd-locked",
        type=flag,
        nargs="?",
        const=True,
        help="false: Stable Diffusion's decoder trains, too; the configuration's by default, or true",
    )
    add(
        "--only-mid-control",
        type=flag,
        nargs="?",
        const=True,
        help="true: features join at the middle block alone, "
        "for plain ControlNets; the configuration's by default, or false",
    )
    add("--actual-resume", type=or_none(file_path), nargs="?", metavar="CKPT", help="as --pretrain-path")
    add("-p", "--project", nargs="?", help="published, without effect: --logdir and -n say where the run lies")
    add(
        "-d",
        "--debug",
        type=flag,
        nargs="?",
        const=True,
        default=False,
        help="published, without effect: python -m pdb -m scripts.train debugs",
    )
    add("--no-test", type=flag, nargs="?", const=True, default=False, help="published, without effect: no test follows")
    add(
        "--save-every",
        type=integer(1),
        metavar="STEPS",
        help="write last.ckpt every so many steps, too, not at the end of epochs and of training alone",
    )
    add("--skip-invalid", action="store_true", help="leave faulty items out instead of stopping")
    add("--follow-links", action="store_true", help="take files outside --data-root that links below it lead to")
    add_trust(options)
    add("--dry-run", action="store_true", help="check everything, print the plan, and stop")
    add("overrides", nargs="*", metavar="key=value", help="any value of the configuration")
    return options


def or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a text that may be empty, which is the published way to give no value."""
    return lambda word: convert(word) if word else None


def command_line(words: Sequence[str]) -> argparse.Namespace:
    """The options, ours and the published ones; what has no effect is said in a line each.

    Raises:
        InputError: an option that is not known, or two that contradict each other.
    """
    options = arguments()
    line = read_line([options.own_spelling(word) for word in words], options._option_string_actions)
    args = options.parse_intermixed_args(line.others)
    args.overrides += line.settings
    notes = line.notes
    without_effect = {"--project": args.project is not None, "--debug": args.debug, "--no-test": args.no_test}
    notes += [f"{option}: without effect (see --help)" for option, given in without_effect.items() if given]
    if args.actual_resume is not None:
        if args.pretrain_path is not None:
            raise InputError("--actual-resume and --pretrain-path: both name start weights; give one of them")
        notes.append("--actual-resume: taken as --pretrain-path, weights to start from; --resume goes on with a run")
        args.pretrain_path = args.actual_resume
    if resume := line.taken.get("resume_from_checkpoint"):
        if args.resume is not None:
            raise InputError("--resume and --resume-from-checkpoint: give one of them")
        notes.append("--resume-from-checkpoint: taken as --resume")
        args.resume = file_path(resume)
    if {"accelerator", "devices"} & set(line.taken):
        gpus = gpus_of(line.taken.get("accelerator"), line.taken.get("devices"))
        if args.gpus != "auto" and (args.gpus.startswith("cpu") != (gpus == "cpu") or "devices" in line.taken):
            raise InputError(
                f"--gpus {one_line(args.gpus, 40)}: --accelerator and --devices say something else; give --gpus alone"
            )
        args.gpus = gpus if args.gpus == "auto" else args.gpus
    for option in ("sd_locked", "only_mid_control"):
        if (value := getattr(args, option)) is not None:
            args.overrides.append(f"model.params.{option}={str(value).lower()}")
    if args.postfix:
        args.name = name(f"{args.name or run_time()}{args.postfix}")
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        for note in notes:
            print(note)
    return args


def main() -> int:
    """Merges the configuration and trains."""
    args = command_line(sys.argv[1:])
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

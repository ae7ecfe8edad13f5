r"""Trains or tests a segmentor with mmengine's Runner.

  python -m scripts.segmentor train configs/mmseg/tiny.py --data-root data/mbrsc --classes MBRSC
  python -m scripts.segmentor test configs/mmseg/tiny.py --data-root data/mbrsc --classes MBRSC \
      --load-from work_dirs/tiny/iter_1000.pth
Masks for images that have none: python -m scripts.segmentor predict --help
Joint training: add --synthesized DIR (the --out-dir of resample.sh) --repeat 10. Several processes, with GPUs or none:
  torchrun --nproc-per-node 4 -m scripts.segmentor train CONFIG --launcher pytorch
A stopped training goes on with --resume and gives the weights of an unbroken one: to the bit on a CPU, and on a GPU
with --cfg-options randomness.deterministic=True, which torch refuses to PSPNet and FastSCNN (they pool adaptively). Not
with augmentation that has random numbers of its own (Albu), nor
with loops, hooks or models of other packages that keep a state beside their weights.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from common import command as cli
from common.converters import integer
from common.options import add_options, flag_of
from common.segmentor_options import TestOptions, TrainOptions
from scripts import predict

if TYPE_CHECKING:
    from segmentation.testing import Tested
    from segmentation.training import Trained

TASKS: dict[str, type[TrainOptions] | type[TestOptions]] = {"train": TrainOptions, "test": TestOptions}


def read_options(words: Sequence[str]) -> TrainOptions | TestOptions:
    """The options of ``train`` or ``test``; the rank that an older launcher gives goes where newer ones write it."""
    options, local_rank = parsed(words)
    of_slurm = os.environ.get("SLURM_LOCALID") if options.launcher == "slurm" else None  # mmengine sets the other late
    os.environ.setdefault("LOCAL_RANK", of_slurm or str(local_rank))
    return options


def parsed(words: Sequence[str]) -> tuple[TrainOptions | TestOptions, int]:
    """The options, and a launcher's rank; one parser, so that each task can say which options are the other's."""
    line = cli.parser(__doc__ or "")
    line.add_argument("task", choices=(*TASKS, "predict"), help="what to do")
    for options in TASKS.values():
        add_options(line, options)
    line.add_argument("--local-rank", type=integer(0), default=0, help=argparse.SUPPRESS)  # older launchers give it
    given = line.parse_args(words)
    if given.task == "predict":  # with its own options, see main
        line.error("predict: write it as the first word, then its options")
    wanted = TASKS[given.task]
    for task, options in TASKS.items():
        for name in {field.name for field in fields(options)} - {field.name for field in fields(wanted)}:
            if getattr(given, name):
                line.error(f"{flag_of(options, name)}: is for {task} only")
    return cli.taken(wanted, given), given.local_rank


def say_trained(trained: Trained) -> None:
    """Which weights there are."""
    if trained.weights:
        print(f"weights: {trained.weights}")
        if trained.best:
            print(f"best on the validation images ({trained.best_score:.4f}): {trained.best}")


def say_tested(tested: Tested) -> None:
    """The scores, and where they are."""
    shown = (f"{name} {'none' if value is None else format(value, '.4f')}" for name, value in tested.summary.items())
    print("  ".join(shown) + f"  ({tested.file})")
    if tested.confusion:
        print(f"confusion of classes: {', '.join(map(str, reversed(tested.confusion)))}")


def main(words: Sequence[str] | None = None) -> None:
    """Parses, trains or tests, tells."""
    words = sys.argv[1:] if words is None else words
    if words and words[0] == "predict":
        predict.main(words[1:])
        return
    options = read_options(words)
    from segmentation.testing import test  # mmseg takes seconds to import: after the options
    from segmentation.training import train

    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for a traceback
    if isinstance(options, TrainOptions):
        say_trained(train(options))
    else:
        from mmengine.dist import is_main_process

        tested = test(options)
        if is_main_process():
            say_tested(tested)


if __name__ == "__main__":
    cli.run(main)

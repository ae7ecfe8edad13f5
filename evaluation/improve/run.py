"""Runs a closed loop to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.bands import read_bands_file
from common.classes import load_class_table
from common.errors import InputError
from common.files import check_writable, only_writer, room_for
from common.processes import Children
from evaluation.improve.data import cut_in_two
from evaluation.improve.options import ImproveOptions
from evaluation.improve.page import write_page
from evaluation.improve.stages import Loop, Run, best, commands

Records = Callable[[Path], Mapping[str, Any]]


def improve(options: ImproveOptions, records: Records, run: Run | None = None) -> str:
    """All rounds, the comparison on the test sets, and the page.

    Args:
        options: of the loop.
        records: reads what synthesis recorded of a folder's images.
        run: runs a command of ``scripts``; in a process of its own by default.

    Returns:
        a summary.

    Raises:
        InputError: the data do not fit, a stage failed, or was done by another command.
    """
    for path in (options.config, options.ckpt):
        if not path.exists():
            raise InputError(f"{'‹config›' if path == options.config else '‹ckpt›'} {path}: no such file")
    load_class_table(str(options.class_table))
    if options.bands is not None:
        read_bands_file(options.bands)
    out = check_writable(options.out, "‹out›")
    with room_for("‹out›", out), only_writer(out, "‹out›"):
        training, validation = cut_in_two(options.data, out / "data", options.scene, options.validation, options.splits)
        said = f"{training} images to train on, {validation} to validate on"
        if options.dry_run:
            return said
        print(said, flush=True)
        if run is not None:
            return _rounds(options, records, run)
        with Children() as children:
            return _rounds(options, records, commands(children, options.processes))


def _rounds(options: ImproveOptions, records: Records, run: Run) -> str:
    loop = Loop(options, run)
    rounds = []
    for rounds in loop.rounds():
        recorded = {one.number: records(one.folder / "images") for one in rounds[1:]}
        write_page(rounds, options, recorded, None)
        print(f"round {rounds[-1].number}: mean IoU {rounds[-1].score:.4f} on the validation scenes", flush=True)
    winner = best(rounds)
    compared = loop.judge(winner)
    page = write_page(rounds, options, recorded, compared)
    if compared is None:
        return f"no round was better than real images alone; {page}"
    return f"round {winner.number} of {len(rounds) - 1} is the best; {page}, {compared / 'comparison.html'}"

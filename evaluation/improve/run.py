"""Runs a closed loop to its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.bands import read_bands_file
from common.classes import load_class_table
from common.errors import InputError
from common.files import check_writable, inside, only_writer, room_for
from common.processes import Children
from evaluation.improve.data import VALIDATION, cut_in_two, fill, to_make_anew
from evaluation.improve.lines import Readers, Stages, check_lines, shown
from evaluation.improve.options import ImproveOptions
from evaluation.improve.page import write_page
from evaluation.improve.stages import Loop, Run, best, commands

Records = Callable[[Path], Mapping[str, Any]]


def improve(options: ImproveOptions, records: Records, run: Run | None = None, readers: Readers | None = None) -> str:
    """All rounds, the comparison on the test sets, and the page.

    Args:
        options: of the loop.
        records: reads what synthesis recorded of a folder's images.
        run: runs a command of ``scripts``; in a process of its own by default.
        readers: how commands of ``scripts`` read their words, which are checked so before anything runs.

    Returns:
        a summary; of a dry run, what would run.

    Raises:
        InputError: the data or the commands' words do not fit, a stage failed, or was done by another command.
    """
    for path in (options.config, options.ckpt):
        if not path.exists():
            raise InputError(f"{'‹config›' if path == options.config else '‹ckpt›'} {path}: no such file")
    if inside(options.data, options.out / "data"):
        raise InputError(f"‹data› {options.data}: lies where the loop makes its own data; name another ‹out›")
    classes = load_class_table(str(options.class_table))
    if options.bands is not None:
        read_bands_file(options.bands)
    cut, items = cut_in_two(options.data, options.scene, options.validation, options.splits)
    stages = Stages(options, len(items))
    planned = stages.planned(len(classes))
    check_lines(planned, readers or {}, options.data)
    _check_numbers(options, len(items))
    if (options.out / "comparison").exists() and not (options.out / "comparison.log").exists():
        raise InputError(f"‹out› {options.out}: holds a comparison that is not this loop's; name another folder")
    said = f"{cut.masks('train')} images to train on, {cut.masks(VALIDATION)} to validate on"
    if options.dry_run:
        to_make_anew(cut, options.out)
        return f"{said}\n{shown(planned, options.processes)}"
    out = check_writable(options.out, "‹out›")
    with room_for("‹out›", out), only_writer(out, "‹out›"):
        if to_make_anew(cut, out):  # with the training that had begun on it, which would go on with its weights
            for folder in (out / "data", *out.glob("round_*")):
                shutil.rmtree(folder)
        fill(cut, items, options.data, out / "data")
        print(said, flush=True)
        if run is not None:
            return _rounds(stages, records, run)
        with Children() as children:
            return _rounds(stages, records, commands(children, options.processes))


def _check_numbers(options: ImproveOptions, masks: int) -> None:
    """Refuses more images of each mask than there are images; ``allot`` would do so after a training."""
    layouts = options.layouts_of(masks)
    least = int(options.said("allotting", "--at-least") or 0)
    total = int(options.said("allotting", "--total") or options.images_of(masks, layouts))
    if least * (masks + layouts) > total:
        raise InputError(
            f"‹allotting› --at-least {least}: of {masks + layouts} masks and layouts are more than the {total} images "
            "of a round; raise ‹images›"
        )


def _rounds(stages: Stages, records: Records, run: Run) -> str:
    loop, options = Loop(stages, run), stages.options
    rounds = []
    for rounds in loop.rounds():
        recorded = {one.number: records(one.folder / "images") for one in rounds[1:]}
        write_page(rounds, options, recorded, None)
        if len(rounds) == 1 and (missing := rounds[0].not_shown):
            print(f"not shown by the validation scenes, and in no score: {', '.join(missing)}", flush=True)
        print(f"round {rounds[-1].number}: mean IoU {rounds[-1].score:.4f} on the validation scenes", flush=True)
    winner = best(rounds)
    compared = loop.judge(winner)
    page = write_page(rounds, options, recorded, compared)
    if compared is None:
        return f"no round was better than real images alone; {page}"
    return f"round {winner.number} of {len(rounds) - 1} is the best; {page}, {compared / 'comparison.html'}"

"""The published command line of training as ``TrainingOptions``: other names for the same, options without effect."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.training.options import TrainingOptions, or_none
from cldm.training.published_line import PublishedLine, gpus_of, read_line
from cldm.training.run_name import run_time
from common.command import Parser, taken
from common.converters import file_path, flag, name
from common.errors import InputError
from common.options import add_options, option
from common.schema import one_line

_SWITCH = {"convert": flag, "nargs": "?", "const": True}  # -d, -d true and -d no are all published


@dataclass(frozen=True, kw_only=True)
class PublishedTrainingOptions(TrainingOptions):
    """What the published command line has beside."""

    train: bool = option(True, names=("--train", "-t"), help="train; false is --dry-run", **_SWITCH)
    postfix: str = option("", names=("--postfix", "-f"), help="put behind the run's name")
    sd_locked: bool | None = option(
        None,
        help="false: Stable Diffusion's decoder trains, too; the configuration's by default, or true",
        **_SWITCH,
    )
    only_mid_control: bool | None = option(
        None,
        help="true: features join at the middle block alone, for plain ControlNets; the configuration's by default, or "
        "false",
        **_SWITCH,
    )
    actual_resume: Path | None = option(
        None, convert=or_none(file_path), nargs="?", metavar="CKPT", help="as --pretrain-path"
    )
    project: str | None = option(
        None,
        names=("--project", "-p"),
        nargs="?",
        help="published, without effect: --logdir and -n say where the run lies",
    )
    debug: bool = option(
        False,
        names=("--debug", "-d"),
        help="published, without effect: python -m pdb -m scripts.train debugs",
        **_SWITCH,
    )
    no_test: bool = option(False, help="published, without effect: no test follows", **_SWITCH)


def read_training_line(line: Parser, words: Sequence[str]) -> tuple[TrainingOptions, list[str]]:
    """The options of a command line, ours and the published ones.

    Args:
        line: the command's parser, which is given the options.
        words: the command line.

    Returns:
        the options, and a line for each that was given without effect or under another name.

    Raises:
        InputError: an option that is not known, or two that contradict each other.
    """
    add_options(line, PublishedTrainingOptions)
    published = read_line([line.own_spelling(word) for word in words], line._option_string_actions)
    parsed = line.parse_intermixed_args(published.others)
    move_settings(parsed, published.settings)
    options = taken(PublishedTrainingOptions, parsed)
    without_effect = {"--project": options.project is not None, "--debug": options.debug, "--no-test": options.no_test}
    notes = published.notes + [f"{flag}: without effect (see --help)" for flag, on in without_effect.items() if on]
    changed: dict[str, Any] = {"dry_run": options.dry_run or not options.train}
    if options.actual_resume is not None:
        if options.pretrain_path is not None:
            raise InputError("‹actual_resume› and ‹pretrain_path›: both name start weights; give one of them")
        notes.append("--actual-resume: taken as --pretrain-path, weights to start from; --resume goes on with a run")
        changed["pretrain_path"] = options.actual_resume
    if resume := published.taken.get("resume_from_checkpoint"):
        if options.resume is not None:
            raise InputError("‹resume› and --resume-from-checkpoint: give one of them")
        notes.append("--resume-from-checkpoint: taken as --resume")
        changed["resume"] = file_path(resume)
    changed["gpus"] = _gpus(options.gpus, published)
    for field in ("sd_locked", "only_mid_control"):
        if (value := getattr(options, field)) is not None:
            changed["settings"] = (
                *changed.get("settings", options.settings),
                f"model.params.{field}={str(value).lower()}",
            )
    if options.postfix:
        changed["name"] = name(f"{options.name or run_time()}{options.postfix}")
    return dataclasses.replace(options, **changed), notes


def move_settings(parsed: argparse.Namespace, published: Sequence[str] = ()) -> None:
    """Options of several words take the settings that follow them, too: ``--base a.yaml key=value``.

    Args:
        parsed: the options of a training or distillation, changed in place.
        published: further settings, given under published names.
    """
    settings = [*parsed.settings, *published]
    for field in ("allow_mismatch", "base"):
        if not hasattr(parsed, field):
            continue
        words = getattr(parsed, field)
        follow = [word for word in words if "=" in str(word) and not Path(word).exists()]
        settings += map(str, follow)
        setattr(parsed, field, [word for word in words if word not in follow])
    parsed.settings = settings


def _gpus(given: str, published: PublishedLine) -> str:
    """``--gpus``, or what Lightning's ``--accelerator`` and ``--devices`` say in its place."""
    if not {"accelerator", "devices"} & set(published.taken):
        return given
    meant = gpus_of(published.taken.get("accelerator"), published.taken.get("devices"))
    if given != "auto" and (given.startswith("cpu") != (meant == "cpu") or "devices" in published.taken):
        raise InputError(
            f"‹gpus› {one_line(given, 40)}: --accelerator and --devices say something else; give ‹gpus› alone"
        )
    return meant if given == "auto" else given

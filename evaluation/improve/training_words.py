"""Which of the words for the segmentors' trainings go to a training, to its test, and to the comparison at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from common.command import Parser
from common.errors import InputError
from common.options import Options, add_options, flag_of
from common.schema import one_line
from common.segmentor_options import SegmentorOptions, TestOptions, TrainOptions
from evaluation.compare import CompareOptions

OF_THE_LOOP = {  # it gives these itself; another value would be of another loop
    *("config", "work_dir", "load_from", "data_root", "classes", "bands", "synthesized", "repeat", "seed"),
    *("split", "out"),
}
NO_MATTER = {  # to what is trained and how it is scored: the comparison, which does not know them, goes without
    *("logger", "tensorboard", "unchecked", "launcher", "resume", "val_split", "val_interval", "best", "confusion"),
}


def shared_out(words: Sequence[str]) -> dict[str, list[str]]:
    """The words by who takes them: ``train``, ``test`` and ``compare``.

    What trainings and tests have in common goes to both, and what one of them has alone to that one. A word that none
    knows goes to the training, whose parser refuses it.

    Args:
        words: options of ``segmentor train`` and ``segmentor test``, with their values.

    Raises:
        InputError: an option that the loop gives itself; or one that changes what is trained or scored, which the
            comparison cannot do as well: its verdict would be of another training.
    """
    line = Parser(add_help=False, allow_abbrev=False)
    for options in (TrainOptions, TestOptions):
        add_options(line, options)
    field_of = {flag_of(options, name): name for options in (TrainOptions, TestOptions) for name in _names(options)}
    found: dict[str, list[str]] = {"train": [], "test": [], "compare": []}
    for group in _by_option(words):
        name = field_of.get(line.own_spelling(group[0]).partition("=")[0])
        said = f"‹training› {one_line(group[0], 60)}"
        if name in OF_THE_LOOP:
            raise InputError(f"{said}: is given by the loop itself; leave it out")
        takers = {"train": name in _names(TrainOptions) or name is None, "test": name in _names(TestOptions)}
        # of the same name, but not of the same meaning: compare's --real-share is a curve
        takers["compare"] = name in _names(SegmentorOptions) & _names(CompareOptions)
        if name is not None and not takers["compare"] and name not in NO_MATTER:
            raise InputError(
                f"{said}: not in the comparison at the end, which would be of other trainings; leave it out"
            )
        for task in (task for task, takes in takers.items() if takes):
            found[task] += group
    return found


def _names(options: type[Options]) -> set[str]:
    return {field.name for field in fields(options)}


def _by_option(words: Sequence[str]) -> Iterator[list[str]]:
    """Each option with its values; what stands before the first one by itself."""
    group: list[str] = []
    for word in words:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group

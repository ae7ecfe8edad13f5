"""The published command line of inference as ``SynthesisOptions``: other names for the same, and what has no effect."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cldm.synthesis.options import PRECISIONS, PUBLISHED, SynthesisOptions
from common.errors import InputError
from common.options import option

PUBLISHED_PRECISIONS = ("full", "autocast")
DATASETS = ("GID26K", "COCO", "ADE20K")


@dataclass(frozen=True, kw_only=True)
class PublishedSynthesisOptions(SynthesisOptions):
    """What the published command line has beside."""

    precision: str = option(
        "32",
        choices=(*PRECISIONS, *PUBLISHED_PRECISIONS),
        help="of the weights, or mixed: weights in 32 bit; published: full is 32, autocast 16-mixed on a GPU, 32 on "
        "the CPU",
    )
    dataset: str | None = option(
        None, choices=DATASETS, group=PUBLISHED, help="GID26K; the two others were never implemented"
    )
    fixed_code: bool = option(False, group=PUBLISHED, help="without effect, as published")
    err_log: str | None = option(
        None, metavar="FILE", group=PUBLISHED, help="without effect: faults are named before work"
    )


def without_published_names(options: PublishedSynthesisOptions) -> tuple[SynthesisOptions, list[str]]:
    """The options under our own names, and a line for each that was given under another, or without effect.

    Raises:
        InputError: a data set that never was implemented.
    """
    notes = []
    changed: dict[str, Any] = {}
    if options.dataset not in (None, "GID26K"):
        raise InputError(f"‹dataset› {options.dataset}: was never implemented; leave it out, the list says which files")
    if options.precision in PUBLISHED_PRECISIONS:
        changed["precision"] = "16-mixed" if options.precision == "autocast" and _on_gpu(options.gpus) else "32"
        notes.append(f"--precision {options.precision}: taken as --precision {changed['precision']}")
    if options.fixed_code:
        notes.append("--fixed-code: without effect, as published; an image's noise follows from --seed and its name")
    if options.err_log:
        notes.append(
            "--err-log: without effect; faulty items are named before work starts, --skip-invalid leaves them out"
        )
    return dataclasses.replace(options, **changed), notes


def _on_gpu(gpus: str) -> bool:
    from common.devices import parse_devices  # asks torch, which takes seconds to import

    return bool(parse_devices(gpus)["accelerator"] == "gpu")

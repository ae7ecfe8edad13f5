"""Options by which an image takes fewer operations, and presets of them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from common.converters import integer, number
from common.errors import InputError
from common.options import Options, option

REUSES = ("none", "branches", "all")
WHOLE = (0.0, 1.0)  # an interval that leaves nothing out
# What each preset sets; docs/speed_and_use.md says what it costs.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "published": {},
    "whole": {"sampler": "dpmsolver++", "steps": 20},
    "balanced": {"sampler": "dpmsolver++", "steps": 10, "spacing": "trailing"},
    "fast": {"sampler": "dpmsolver++", "steps": 5, "spacing": "trailing"},
}
S = TypeVar("S", bound="SavingOptions")


@dataclass(frozen=True, kw_only=True)
class SavingOptions(Options):
    """Which parts of the networks act at which steps; by the defaults all of them, at all steps, as published."""

    preset: str = option(
        "published",
        choices=tuple(PRESETS),
        help="set several of these options (docs/speed_and_use.md); what is given beside it wins",
    )
    guidance_interval: tuple[float, ...] = option(
        WHOLE,
        nargs=2,
        convert=number(0, 1),
        metavar=("LO", "HI"),
        help="noise levels that are guided, as shares of the time steps: 0 is the clean image, 1 noise alone; at "
        "others, one prediction with the text",
    )
    mask_strength: float = option(
        1.0, convert=number(0, 10), help="of what the mask branch says; at 0 it is not computed"
    )
    reference_strength: float = option(1.0, convert=number(0, 10), help="the same of the reference branch")
    mask_span: tuple[float, ...] = option(
        WHOLE,
        nargs=2,
        convert=number(0, 1),
        metavar=("LO", "HI"),
        help="the mask branch acts between these shares of the denoising: 0 is the beginning, from noise, 1 the end",
    )
    reference_span: tuple[float, ...] = option(
        WHOLE, nargs=2, convert=number(0, 1), metavar=("LO", "HI"), help="the same of the reference branch"
    )
    reuse_encoder: str = option(
        "none",
        choices=REUSES,
        help="keep the features of the two branches, or of all three encoders, from each key step to the next",
    )
    key_steps: tuple[str, ...] = option(
        ("early",),
        metavar="STEP",
        help="with --reuse-encoder: every-N; early (dense at first: 0 1 2 3 5 10 15 25 35 of 50); or numbers from 0",
    )
    steps_at_once: int = option(
        1,
        convert=integer(1, 500),
        help="with --reuse-encoder all: up to so many steps between key steps in one batch, of so much more memory",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("guidance_interval", "mask_span", "reference_span"):
            interval = getattr(self, name)
            if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
                told = " ".join(f"{one:g}" for one in interval)
                raise InputError(f"‹{name}› {told}: write two numbers, 0 to 1, the lower one first")
        if not _are_key_steps(self.key_steps):
            raise InputError(
                f"‹key_steps› {' '.join(self.key_steps)}: write early, every-N (N from 1), or rising numbers of steps"
            )
        if self.reuse_encoder == "none" and self.key_steps != ("early",):
            raise InputError(
                f"‹key_steps› {' '.join(self.key_steps)}: of what? Set ‹reuse_encoder› branches or all, too"
            )
        if self.reuse_encoder != "all" and self.steps_at_once > 1:
            raise InputError(f"‹steps_at_once› {self.steps_at_once}: goes with ‹reuse_encoder› all")

    @classmethod
    def of_preset(cls: type[S], name: str, **given: Any) -> S:
        """The options of a preset, and what is given beside it.

        Raises:
            InputError: no such preset, or options that contradict each other.
        """
        return cls(preset=name, **{**PRESETS.get(name, {}), **given})

    def preset_line(self) -> str:
        """What a preset comes to, with what was given beside it; empty for ``published``."""
        set_by_it = PRESETS[self.preset]
        told = (f"{name} {_told(getattr(self, name))}" + _instead(self, name) for name in set_by_it)
        return f"preset {self.preset}: {', '.join(told)}" if set_by_it else ""


def _are_key_steps(words: tuple[str, ...]) -> bool:
    if len(words) == 1 and re.fullmatch("early|every-[1-9][0-9]{0,3}", words[0]):
        return True
    if not words or not all(re.fullmatch("[0-9]{1,4}", word) for word in words):
        return False
    numbers = [int(word) for word in words]
    return numbers == sorted(set(numbers))


def _told(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _instead(options: SavingOptions, name: str) -> str:
    own = PRESETS[options.preset][name]
    return "" if getattr(options, name) == own else f" (given; the preset's is {_told(own)})"

"""Arms of a comparison by name: what each trains on beside the real images, and how."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from common.errors import InputError
from common.schema import one_line

TRICKS = ("fda", "color_transfer", "copy_paste")
SOURCES = ("joint", "pretrain", "synthesized")
PARTS = ("real", *SOURCES, "self_training", *TRICKS, "weights")
_PART = re.compile(r"(?P<part>[a-z_]+)(:(?P<folder>[A-Za-z0-9_]+))?")


@dataclass(frozen=True)
class Recipe:
    """An arm.

    Attributes:
        source: where synthesized images enter: ``joint`` with the real ones, ``pretrain`` before them, ``synthesized``
            in their place; empty: nowhere.
        folder: which synthesized images, by the name that ``others`` gives them; empty: those of ``synthesized``.
        self_training: the references join the training, as the real arm's segmentor labels them.
        tricks: of ``TRICKS``.
        weights: synthesized pixels count as their weight maps say.
        amount: synthesized images for each real one; None: all.
        share: part of the real images.
    """

    source: str = ""
    folder: str = ""
    self_training: bool = False
    tricks: tuple[str, ...] = ()
    weights: bool = False
    amount: float | None = None
    share: float | None = None

    @property
    def name(self) -> str:
        """As it is written in ``arms``, in a fixed order; with amount and share, if it has them."""
        source = f"{self.source}:{self.folder}" if self.folder else self.source
        parts = [source, "self_training" * self.self_training, *self.tricks, "weights" * self.weights]
        text = "+".join(filter(None, parts)) or "real"
        text += "" if self.amount is None else f", {self.amount:g} per real image"
        return text + ("" if self.share is None else f", {100 * self.share:g} % of the real images")

    @property
    def kind(self) -> str:
        """What folders of its runs begin with; ``baseline`` and ``joint`` as they always were."""
        whole = replace(self, amount=None, share=None).name
        text = re.sub(r"^real$", "baseline", whole).replace(":", "-")
        text += "" if self.amount is None else f"_amount_{self.amount:g}"
        return text + ("" if self.share is None else f"_share_{self.share:g}")

    @property
    def free(self) -> bool:
        """Whether it is a rival: something beside real images alone, and no synthesized ones."""
        return not self.source and bool(self.tricks or self.self_training)


REAL, JOINT = Recipe(), Recipe(source="joint")


def parse_recipe(text: str) -> Recipe:
    """An arm by its name: parts with ``+`` between them, ``joint+fda``, or ``joint:care`` for another folder's images.

    Raises:
        InputError: a part that is none, named twice, or that contradicts another.
    """
    shown = f"‹arms› {one_line(text, 60)}"
    parts: dict[str, str] = {}
    for word in text.split("+"):
        match = _PART.fullmatch(word)
        if match is None or match["part"] not in PARTS or (match["folder"] and match["part"] not in SOURCES):
            raise InputError(f"{shown}: write parts of {', '.join(PARTS)} with + between them; joint:NAME for ‹others›")
        if match["part"] in parts:
            raise InputError(f"{shown}: names {match['part']} twice")
        parts[match["part"]] = match["folder"] or ""
    sources = [part for part in SOURCES if part in parts]
    if len(sources) > 1:
        raise InputError(f"{shown}: {' and '.join(sources)} contradict each other; write two arms")
    if "weights" in parts and not sources:
        raise InputError(f"{shown}: weights are those of synthesized images; write joint+weights")
    source = sources[0] if sources else ""
    return Recipe(
        source=source,
        folder=parts.get(source, ""),
        self_training="self_training" in parts,
        tricks=tuple(trick for trick in TRICKS if trick in parts),
        weights="weights" in parts,
    )


def recipes_of(arms: tuple[str, ...]) -> list[Recipe]:
    """The arms in the order given, the real images alone first.

    Raises:
        InputError: see ``parse_recipe``; an arm is named twice, or none beside the real images.
    """
    found = [REAL, *(recipe for recipe in map(parse_recipe, arms) if recipe != REAL)]
    if len(found) == 1:
        raise InputError("‹arms› real: name what is to be compared with it")
    if twice := next((recipe.name for recipe in found if found.count(recipe) > 1), None):
        raise InputError(f"‹arms› {twice}: names one arm twice")
    return found

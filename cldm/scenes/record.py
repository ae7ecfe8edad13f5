"""What a scene is made of: beside its image, and compared when its making goes on (``common.work``)."""

from __future__ import annotations

from cldm.synthesis.planning import MAKES, difference
from cldm.synthesis.records import Sample
from common.errors import InputError


class SceneRecord(Sample):
    """What a scene was made of: that of an image, and its windows (height, width in pixels)."""

    window: list[int] = []
    overlap: float = 0.0


def other(then: SceneRecord, now: SceneRecord) -> str:
    """The first thing that makes a scene and differs; empty where none does."""
    return difference(then, now, (*MAKES, "window", "overlap"))


def refuse_other(then: SceneRecord, now: SceneRecord, what: str, remedy: str) -> None:
    """Refuses to go on with, or to replace, what was made otherwise.

    Raises:
        InputError: says what is another.
    """
    if fault := other(then, now):
        raise InputError(f"{what} {fault}; {remedy}")

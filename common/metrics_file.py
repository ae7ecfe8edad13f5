"""The metrics of a segmentor, as scripts/segmentor.py test writes them: one schema for all who read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.schema import OpenSchema, read_json

Share = Annotated[float, Field(ge=0, le=1)]


class ClassScores(OpenSchema):
    """Scores of a class; None where neither masks nor predictions show it."""

    IoU: Share | None
    Acc: Share | None = None


class Metrics(OpenSchema):
    """Overall accuracy, mean IoU, mean accuracy, and the scores of each class by name; all in 0..1 or None."""

    OA: Share | None = None
    mIoU: Share | None = None
    mAcc: Share | None = None
    classes: dict[str, ClassScores] = Field(min_length=1)


def read_metrics(path: Path, remedy: str = "make it with scripts/segmentor.py test") -> Metrics:
    """Reads a metrics file.

    Raises:
        InputError: unreadable, or a score that is none; names file and field, and ends with ``remedy``.
    """
    return read_json(path, Metrics, remedy)

"""The metrics of a segmentor, as scripts/segmentor.py test writes them: one schema for all who read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.schema import OpenSchema, read_json

Share = Annotated[float, Field(ge=0, le=1)]


class ClassScores(OpenSchema):
    """Scores of a class: no IoU (None) where neither masks nor predictions show it, no Acc where the masks do not."""

    IoU: Share | None
    Acc: Share | None = None


class Metrics(OpenSchema):
    """Overall accuracy, mean IoU, mean accuracy, and the scores of each class by name; all in 0..1 or None."""

    OA: Share | None = None
    mIoU: Share | None = None
    mAcc: Share | None = None
    classes: dict[str, ClassScores] = Field(min_length=1)

    def of_shown(self) -> Metrics:
        """The same without an IoU of classes that the masks do not show, and the mean of the others.

        mmseg leaves such a class out of its mean only while it is never predicted: with a single stray pixel its IoU is
        0, and one more class divides the sum. Nothing changes where masks show all classes, or the file has no Acc.
        """
        known = {name: scores for name, scores in self.classes.items() if scores.IoU is not None}
        shown = {name: scores.IoU for name, scores in known.items() if scores.Acc is not None}
        if len(shown) in (0, len(known)):
            return self
        classes = {
            name: scores if name in shown else scores.model_copy(update={"IoU": None})
            for name, scores in self.classes.items()
        }
        mean = sum(score for score in shown.values() if score is not None) / len(shown)
        return self.model_copy(update={"mIoU": mean, "classes": classes})


def read_metrics(path: Path, remedy: str = "make it with scripts/segmentor.py test") -> Metrics:
    """Reads a metrics file.

    Raises:
        InputError: unreadable, or a score that is none; names file and field, and ends with ``remedy``.
    """
    return read_json(path, Metrics, remedy)

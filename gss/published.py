"""What published configurations leave unsaid or say by a name; read here, so that the heads know arguments alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from common.errors import InputError

Predicted = Literal["tokens", "pixels"]


def read_losses(losses: Any, predictable: Sequence[Predicted]) -> tuple[Any, tuple[Predicted, ...]]:
    """Takes apart what mmseg builds of a head's losses, and what each of them compares.

    A loss says ``predicts="tokens"`` or ``"pixels"``. Published ones say it by a name that ends in ``pixel``, or not;
    and they rely on averages over the pixels that count, which mmseg 1.x needs to be told.

    Args:
        losses: ``loss_decode`` of a configuration, one loss or several.
        predictable: what the head can predict.

    Returns:
        ``loss_decode`` as mmseg knows it, and what is predicted, one a loss.

    Raises:
        InputError: a loss of something that the head does not predict.
    """
    several = losses if isinstance(losses, Sequence) else [losses]
    known, predicted = [], []
    for i, loss in enumerate(several):
        by_name: Predicted = "pixels" if str(loss.get("loss_name", "")).endswith("pixel") else "tokens"
        said = loss.get("predicts", by_name if by_name in predictable else predictable[0])
        if said not in predictable:
            raise InputError(f"loss_decode[{i}].predicts: is {said}; this head predicts {' or '.join(predictable)}")
        averaged = {"avg_non_ignore": True} if loss.get("type") == "CrossEntropyLoss" else {}
        known.append(averaged | {key: value for key, value in loss.items() if key != "predicts"})
        predicted.append(cast("Predicted", said))
    return (known if isinstance(losses, Sequence) else known[0]), tuple(predicted)

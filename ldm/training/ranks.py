"""Which of a command's processes this is, before Lightning's trainer has been asked."""

from __future__ import annotations

from pytorch_lightning.utilities import rank_zero_only


def first_process() -> bool:
    """Whether this is the first process, which speaks for all that one launcher started."""
    return getattr(rank_zero_only, "rank", 0) == 0

"""Which of a command's processes this is, before Lightning's trainer has been asked."""

from __future__ import annotations

import os

from pytorch_lightning.utilities import rank_zero_only

from common.processes import end_with_parent


def first_process() -> bool:
    """Whether this is the first process, which speaks for all that one launcher started."""
    return getattr(rank_zero_only, "rank", 0) == 0


def end_with_first() -> None:
    """To be called by every process of a command, before its work: those that Lightning started end with the first.

    Lightning ends them on Ctrl-C alone. After any other error of the first (too little memory, a full disk) they would
    go on, or wait for it, and hold their GPUs. torchrun's and SLURM's processes are looked after by these.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
        end_with_parent()

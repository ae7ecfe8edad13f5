"""AdamW (Loshchilov & Hutter 2019) by the implementations that a training chooses from."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.extras import install


def check_optimizer(kind: str, accelerator: str) -> None:
    """Refuses, before any work, an optimizer that cannot run here.

    Args:
        kind: one of ``ldm.models.choices.OPTIMIZERS``.
        accelerator: Lightning's: ``cpu`` or ``gpu``.

    Raises:
        InputError: no GPU, or no bitsandbytes.
    """
    if kind == "adamw_8bit":
        if accelerator == "cpu":
            raise InputError("model.params.optimizer: adamw_8bit: needs a GPU; take adamw_fused")
        _adamw_8bit()


def _adamw_8bit() -> Any:
    try:
        return importlib.import_module("bitsandbytes").optim.AdamW8bit
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f"model.params.optimizer: adamw_8bit: needs bitsandbytes: {install('adamw8bit')}") from error


def make_optimizer(
    kind: str, parameters: Iterable[nn.Parameter], options: Mapping[str, Any], fuses: bool = True
) -> torch.optim.Optimizer:
    """An AdamW.

    Args:
        kind: ``adamw``; ``adamw_fused``, which updates all parameters by one kernel, without temporary copies; or
            ``adamw_8bit`` (Dettmers et al. 2022), which keeps both averages in 8 bit.
        parameters: what trains.
        options: see ``optimizer_options``.
        fuses: see there.

    Raises:
        InputError: bitsandbytes is not there.
    """
    make = _adamw_8bit() if kind == "adamw_8bit" else torch.optim.AdamW
    optimizer: torch.optim.Optimizer = make(list(parameters), **optimizer_options(kind, options, fuses))
    return optimizer


def optimizer_options(kind: str, options: Mapping[str, Any], fuses: bool = True) -> dict[str, Any]:
    """What an optimizer's parameter groups hold.

    Args:
        kind: see ``make_optimizer``.
        options: learning rate (``lr``) and weight decay (``weight_decay``).
        fuses: whether a fused one may be taken where it is asked for. In 16-mixed it would unscale the gradients
            itself, after Lightning has clipped them; Lightning refuses that.
    """
    if kind == "adamw_8bit":
        return dict(options)
    return {**options, "fused": True if fuses and kind == "adamw_fused" else None}  # False would be a loop over tensors

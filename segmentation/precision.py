"""Training in bfloat16: matrix products in half the bits, weights and their updates in 32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn

from common.errors import InputError


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass in bfloat16 where torch's autocast does, on CPUs as on GPUs.

    bfloat16 has the range of 32 bit, so losses need no scaling, and checkpoints are those of ``OptimWrapper``.
    mmengine's ``AmpOptimWrapper`` does the same on GPUs alone.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The forward pass of one iteration."""
        device = get_device()
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


def set_precision(config: Config, precision: str | None) -> None:
    """Trains in ``bf16`` or ``32`` bit; None leaves it to the config.

    Raises:
        InputError: the config's optimizer wrapper is none of the two that this chooses between.
    """
    if precision is None:
        return
    wrapper = config.get("optim_wrapper") or {}
    known = ("OptimWrapper", "AmpOptimWrapper", BFloat16OptimWrapper.__name__)
    if wrapper.get("type", known[0]) not in known:
        raise InputError(
            f"{config.filename}: ‹precision›: its optim_wrapper is {wrapper['type']}; "
            "set what that takes with ‹cfg_options›"
        )
    kept = {key: value for key, value in wrapper.items() if key not in ("loss_scale", "dtype", "use_fsdp")}
    config.optim_wrapper = {**kept, "type": known[2] if precision == "bf16" else known[0]}

"""The memory that the works of ``cldm.benchmark.memory`` take on a GPU: run there, with weights of zeros."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig

from cldm.benchmark.memory import (
    given_batch,
    guided_image,
    training_loss,
    with_params,
    with_training,
)
from cldm.benchmark.timing import peak_memory, reset_peak_memory
from cldm.build import outline
from cldm.control_ldm import ControlLDM


def _zeros(config: DictConfig, dtype: torch.dtype, device: torch.device) -> ControlLDM:
    """The model with weights of zeros: what it computes is nothing, and takes the memory that it always takes."""
    model = outline(config).to(dtype).to_empty(device=device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    return model


def measure_training(
    config: DictConfig,
    size: tuple[int, int],
    batch_size: int,
    half: bool,
    checkpointing: bool,
    lora: int | None,
    device: torch.device,
) -> float | None:
    """GiB at the peak of two training steps with AdamW; None where the GPU has less. See ``count_training``."""

    def work() -> None:
        model = _zeros(with_training(config, checkpointing, lora), torch.float32, device)
        model.train()
        configured: Any = model.configure_optimizers()
        given = {name: one.to(device) for name, one in given_batch(model, batch_size, *size, torch.float32).items()}
        for _ in range(2):  # the optimizer's states are there from the first on
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if half else contextlib.nullcontext():
                loss = training_loss(model, given)
            loss.backward()
            configured["optimizer"].step()
            configured["optimizer"].zero_grad()

    return _peak(work, device)


def measure_synthesis(
    config: DictConfig, size: tuple[int, int], batch_size: int, half: bool, device: torch.device
) -> float | None:
    """GiB at the peak of a guided step and the decoding; None where the GPU has less. See ``count_synthesis``."""

    @torch.no_grad()
    def work() -> None:
        dtype = torch.float16 if half else torch.float32
        model = _zeros(with_params(config), dtype, device).eval()
        given = {name: one.to(device) for name, one in given_batch(model, batch_size, *size, dtype).items()}
        guided_image(model, given)

    return _peak(work, device)


def _peak(work: Callable[[], None], device: torch.device) -> float | None:
    reset_peak_memory(device)
    try:
        work()
    except RuntimeError:  # too little memory, or what else a device refuses: the other rows go on
        return None
    return peak_memory(device)

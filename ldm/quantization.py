"""Weights in 8 bit, by torchao: for synthesis alone, such weights do not train.

Quantized are the linear layers of the transformer blocks: attention and feed-forward parts. Convolutions, norms and
what embeds the time step stay as they are. Each row of a matrix W is kept as round(W / s) with a scale s of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.extras import install
from ldm.modules.attention import BasicTransformerBlock

FP8_CAPABILITY = (8, 9)  # GPUs from Ada and Hopper on
NARROWEST = 16  # inputs of a layer, for torchao's kernels


def quantizer(kind: str, on_gpu: bool) -> Any:
    """torchao's settings for weights of a kind.

    Args:
        kind: ``int8`` or ``fp8``.
        on_gpu: whether the model runs there.

    Raises:
        InputError: torchao is not there, or the GPU does not have this kind.
    """
    capable = on_gpu and torch.cuda.get_device_capability() >= FP8_CAPABILITY
    if kind == "fp8" and not capable:
        raise InputError("‹quantize› fp8: needs a GPU of compute capability 8.9 (Ada, Hopper) or later; take int8")
    try:
        torchao: Any = importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise InputError(f"‹quantize› {kind}: needs torchao: {install('quantize')}") from error
    return torchao.Int8WeightOnlyConfig() if kind == "int8" else torchao.Float8WeightOnlyConfig()


def quantize(networks: Iterable[nn.Module], kind: str, on_gpu: bool) -> int:
    """Quantizes networks in place.

    Args:
        networks: in their precision, on their device.
        kind: ``none``, ``int8`` or ``fp8``.
        on_gpu: whether they run on a GPU.

    Returns:
        how many layers have 8-bit weights now.

    Raises:
        InputError: see ``quantizer``.
    """
    if kind == "none":
        return 0
    how = quantizer(kind, on_gpu)
    apply = importlib.import_module("torchao.quantization").quantize_
    found = []

    def fits(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features >= NARROWEST

    for network in networks:
        for block in network.modules():
            if isinstance(block, BasicTransformerBlock):
                found += [layer for layer in block.modules() if fits(layer, "")]
                apply(block, how, filter_fn=fits)
    return len(found)

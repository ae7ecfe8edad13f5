"""``torch.compile`` of networks: as a whole, or their repeated blocks alone, which start sooner.

A block compiled by itself is compiled once for all blocks of its class and shape, whatever their weights. The rest
of a network (the convolutions between levels, the first and the last ones) runs as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from ldm.models.choices import COMPILED
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.layers import ResBlock

BLOCKS = (ResBlock, BasicTransformerBlock)
NEEDS_GPU = "‹compile› graphs: CUDA graphs need a GPU; take blocks"
MOST_SHAPES = 1000  # of one block: after that many, PyTorch would run it uncompiled; its own limit of 8 is too few


def compiled(networks: Iterable[nn.Module], kind: str) -> list[nn.Module]:
    """Compiles networks, each at its first call.

    Args:
        networks: on their device.
        kind: ``no``; ``blocks``; ``whole``; or ``graphs``, blocks that are replayed as CUDA graphs: what a block gives
            is overwritten at the network's next call, and nothing must keep it for longer.

    Returns:
        what was compiled: whole networks, or their blocks.

    Raises:
        InputError: CUDA graphs without a GPU.
    """
    if kind not in COMPILED:
        raise InputError(f"‹compile› {kind}: choose {', '.join(COMPILED)}")
    if kind == "graphs" and not torch.cuda.is_available():
        raise InputError(NEEDS_GPU)
    if kind == "no":  # before the compiler, whose import takes seconds
        return []
    networks = list(networks)
    if kind == "whole":
        for network in networks:
            network.compile()
        return networks
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = MOST_SHAPES
    blocks: list[nn.Module] = []
    for network in networks:
        for block in network.modules():
            if isinstance(block, BLOCKS):
                # By PyTorch's default the second shape, of the next level, would make all sizes variable.
                block.compile(dynamic=False, mode="reduce-overhead" if kind == "graphs" else None)
                blocks.append(block)
        if kind == "graphs":
            network.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
    return blocks

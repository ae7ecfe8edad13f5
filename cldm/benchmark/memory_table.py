"""The memory of all works of a configuration, counted and, where there is a GPU, measured, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from cldm.benchmark.measured import measure_synthesis, measure_training
from cldm.benchmark.memory import GIB, Memory, count_synthesis, count_training, with_params
from cldm.build import load_config, outline
from cldm.options import CountMemoryOptions
from common.errors import InputError
from common.trust import trust


def memory_table(options: CountMemoryOptions) -> Iterator[str]:
    """Lines of a Markdown table as they come: training with and without LoRA, checkpointing and 16 bit, and synthesis.

    Raises:
        InputError: a configuration or size that cannot be.
    """
    trust(options.trust)
    config = load_config(options.config)
    height, width = options.size if len(options.size) == 2 else options.size * 2
    multiple = outline(with_params(config, lora=options.lora, trainable="fusion")).multiple
    if height % multiple or width % multiple:
        raise InputError(f"‹size› {height} {width}: must be multiples of {multiple}")
    device = torch.device("cuda" if options.measure else "cpu")
    if options.measure and not torch.cuda.is_available():
        raise InputError("‹measure›: no GPU here")
    heads = "work precision batch checkpointing weights optimizer gradients activations"
    columns = [*heads.split(), "at the peak", *(["measured"] if options.measure else [])]
    yield "| " + " | ".join(columns) + " |"
    yield "| --- " * len(columns) + "|"

    def line(*cells: Any, memory: Memory, measured: Callable[[], float | None]) -> str:
        parts = (memory.weights, memory.optimizer, memory.gradients, memory.activations, memory.together)
        row = [*map(str, cells), *(f"{part / GIB:.2f}" for part in parts)]
        if options.measure:
            taken = measured()
            row.append("does not fit" if taken is None else f"{taken:.2f}")
        return "| " + " | ".join(row) + " |"

    for lora in (None, options.lora):
        what = "training" if lora is None else f"training, LoRA {lora}"
        for half in (False, True):
            for batch in options.batch_size:
                for checkpointing in (False, True):
                    how = (config, (height, width), batch, half, checkpointing, lora)
                    cells = (what, "bf16-mixed" if half else "32-true", batch, "yes" if checkpointing else "no")
                    yield line(*cells, memory=count_training(*how), measured=partial(measure_training, *how, device))
    for half in (False, True):
        for batch in options.batch_size:
            work = (config, (height, width), batch, half)
            counted = count_synthesis(*work)
            measured = partial(measure_synthesis, *work, device)
            yield line("synthesis", "16" if half else "32", batch, "", memory=counted, measured=measured)

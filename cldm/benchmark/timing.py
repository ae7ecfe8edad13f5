"""Clocks and counters: seconds, floating-point operations, memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that a clock read afterwards counts its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 1) -> float:
    """Median time of ``work`` in seconds."""
    times = []
    for i in range(warmup + repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_turn(works: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median times of several works, run in turn (A B C A B C ...), so that a drifting machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(repeats + 1):
        for name, work in works.items():
            times[name].append(seconds(work, device, 1, warmup=1 if i == 0 else 0))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured rate of a large matrix product in FLOP/s: what this machine can do at this precision."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ b, device, 10, warmup=3)


# what fused attention is on a CPU; torch has a formula for those of GPUs alone
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """By the shapes of its inputs."""
    return int(sdpa_flop_count(query, key, value))


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of ``work``'s matrix products, convolutions and attention."""
    with FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops}) as counter:
        work()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reset_peak_memory(device: torch.device) -> None:
    """What ``peak_memory`` says begins anew; on a CPU it is the process's, which does not."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

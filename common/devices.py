"""What to compute on: one device (``--device``), or those of Lightning's trainer (``--gpus``)."""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from common.errors import InputError
from common.schema import one_line


def pick_device(name: str) -> str:
    """The device to compute on; ``auto`` and ``cuda`` take this process's own GPU."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if name not in ("auto", "cpu", "cuda") and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise InputError(f"‹device› {name}: write auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"‹device› {name}: no GPU here; use ‹device› cpu")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise InputError(f"‹device› {name}: no such GPU here ({torch.cuda.device_count()} present)")
    return "cpu" if name == "auto" else name


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as ``CUDA_VISIBLE_DEVICES`` names them."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 numbers; without, they take longer than 32 bits."""
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def use_threads(threads: int | None) -> None:
    """Sets the CPU threads of this process and of those that it starts; None leaves them as they are.

    PyTorch takes one for each physical core, and Lightning shares them among the processes of a machine.
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Lightning leaves it alone, then
        torch.set_num_threads(threads)


def parse_devices(gpus: str) -> dict[str, Any]:
    """Lightning's ``accelerator`` and ``devices`` from ``--gpus``.

    Args:
        gpus: ``auto`` (all GPUs, else the CPU), ``cpu``, ``cpu:2`` (two processes), or indices such as ``0,1,2``.

    Raises:
        InputError: no such text, or a device that is absent.
    """
    present = torch.cuda.device_count()
    if gpus == "auto":
        return {"accelerator": "gpu", "devices": present} if present else {"accelerator": "cpu", "devices": 1}
    if gpus == "cpu" or re.fullmatch(r"cpu:[1-9][0-9]{0,2}", gpus):
        return {"accelerator": "cpu", "devices": int(gpus[4:] or 1)}
    try:
        indices = [int(index) for index in gpus[:4000].split(",") if index.strip()]
    except ValueError:
        indices = []
    if not indices or len(set(indices)) < len(indices):
        raise InputError(f"‹gpus› {one_line(gpus, 60)}: write auto, cpu, or indices such as 0 or 0,1,2")
    if absent := [index for index in indices if not 0 <= index < present]:
        raise InputError(
            f"‹gpus› {gpus}: no GPU {absent[0]} here ({present} present); write cpu or other indices (0,1 are two GPUs)"
        )
    return {"accelerator": "gpu", "devices": indices}


def count_devices(devices: int | list[int]) -> int:
    """Number of devices in Lightning's way of writing them."""
    return devices if isinstance(devices, int) else len(devices)

"""What the commands on segmentors share: the choice of a device."""

from __future__ import annotations

import os

import torch

from common.errors import InputError


def pick_device(name: str) -> str:
    """The device to compute on; ``auto`` and ``cuda`` take this process's own GPU."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if name not in ("auto", "cpu", "cuda") and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise InputError(f"--device {name}: write auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: no GPU here; use --device cpu")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: no such GPU here ({torch.cuda.device_count()} present)")
    return "cpu" if name == "auto" else name

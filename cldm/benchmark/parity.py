"""How far predictions and pictures by lower precisions are from those by 32 bit, with the same random weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from cldm.benchmark.bench import DTYPES, Bench
from cldm.benchmark.timing import reset_peak_memory
from cldm.options import BenchmarkOptions
from common.devices import pick_device
from common.trust import trust

TIMES = (0.05, 0.5, 0.95)  # shares of the noise process
ALLOWED = {"bf16": 0.05, "16": 0.01, "32, TF32": 0.01}  # of the prediction's size


@torch.no_grad()
def parity(options: BenchmarkOptions) -> dict[str, Any]:
    """Differences of each precision from 32 bit.

    Whole images are not compared: with random weights a denoising doubles a difference from step to step.

    Args:
        options: which model, size, batch and device.

    Returns:
        by precision: ``prediction``, the largest relative difference (of norms) at three time steps; ``gray_levels``,
        the mean difference of a decoded latent; ``within``, whether the prediction's is allowed.

    Raises:
        InputError: a configuration, size or device that cannot be.
    """
    trust(options.trust)
    device = torch.device(pick_device(options.device))
    bench = Bench(options, device)
    model = bench.model.float()
    generator = torch.Generator(device).manual_seed(0)
    for part in (*model.branches, model.model):
        for weight in part.parameters():
            if not weight.any():  # zero convolutions, which would hide what the branches say
                weight.normal_(std=0.1, generator=generator)
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # which is on by default, and no matter of the precision above
    exact = _predictions(bench, model)
    found: dict[str, Any] = {}
    for name in ("bf16", "16"):
        found[name] = _difference(exact, _predictions(bench, copy.deepcopy(model).to(DTYPES[name])), name)
        reset_peak_memory(device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as a synthesis in 32 bit has it
        torch.backends.cudnn.allow_tf32 = True
        getattr(model.cond_stage_model, "_cache", {}).clear()  # texts were encoded without
        found["32, TF32"] = _difference(exact, _predictions(bench, model), "32, TF32")
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = convolutions
    return {"config": str(options.config), "size": list(options.size), "device": str(device), "precisions": found}


def _predictions(bench: Bench, model: Any) -> list[Tensor]:
    """Predictions at three time steps, and a picture."""
    dtype = next(model.control_model.parameters()).dtype
    bench.model = model
    cond, x = bench.conditions()[0], bench.x.to(dtype)
    total = len(model.betas)
    times = [torch.full((len(x),), int(share * total), device=x.device) for share in TIMES]
    made = [model.apply_model(x, t, cond).float() for t in times]
    return [*made, model.decode_first_stage(x).float()]


def _difference(exact: list[Tensor], other: list[Tensor], name: str) -> dict[str, Any]:
    *predictions, picture = (
        (float((b - a).norm() / a.norm()), float((b - a).abs().mean() * 127.5))
        for a, b in zip(exact, other, strict=True)
    )
    worst = max(relative for relative, _ in predictions)
    return {"prediction": worst, "gray_levels": picture[1], "within": worst <= ALLOWED[name]}


def parity_table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [f"{result['config']}, {result['size']} px, {result['device']}: beside 32 bit"]
    for name, found in result["precisions"].items():
        mark = "" if found["within"] else f"   MORE THAN {ALLOWED[name]:.0%}"
        lines.append(
            f"  {name:<9} prediction {found['prediction']:.2%}, picture {found['gray_levels']:.2f} gray levels{mark}"
        )
    return "\n".join(lines)

"""Measures how far a model's images by each solver and number of steps are from those of many steps, and draws it.

  python docs/solvers.py run/config.yaml run/checkpoints/last.ckpt DATA items.json out [images] [px] [scale]

The reference is DDIM in 200 steps, from the same noise. Writes out.json, as far as it is, and goes on from there; then
out.svg. Items name ref_image, as those of a synthesis.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cldm.build import create_model
from cldm.data.pairs import PairedImages
from cldm.synthesis.options import SamplingOptions
from cldm.synthesis.run import collate, paint
from common.files import atomic_path
from common.plots import plt
from ldm.models.choices import SOLVERS

STEPS = (5, 10, 15, 20, 50)
REFERENCE = 200


def batch_of(model: Any, root: str, items: str, images: int, size: int) -> dict[str, Any]:
    """The first items as a batch, with seed 0."""
    data = PairedImages(
        root, items, size, 0, model.hint_encoding, model.classes, use_reference=True, multiple_of=model.multiple
    )
    return {**collate([data[i] for i in range(images)]), "job_seed": [0] * images}


def measure(config: str, ckpt: str, root: str, items: str, out: str, images: int, size: int, scale: float) -> Any:
    """Root mean squared differences from the reference, in gray levels, by solver and steps."""
    model = create_model(config, ckpt, use_ema=True).requires_grad_(False)
    model.accelerate()
    batch = batch_of(model, root, items, images, size)

    def made(sampler: str, steps: int) -> torch.Tensor:
        start = time.perf_counter()
        options = SamplingOptions(sampler=sampler, steps=steps, spacing="trailing", scale=scale)
        with torch.inference_mode():
            result = paint(model, batch, options).clamp(-1, 1)
        print(f"{sampler}, {steps} steps: {time.perf_counter() - start:.1f} s", flush=True)
        return result

    kept = Path(out).with_suffix(".pt")
    if not kept.exists():
        with atomic_path(kept) as path:
            torch.save(made("ddim", REFERENCE), path)
    reference, file = torch.load(kept), Path(out).with_suffix(".json")
    found = json.loads(file.read_text()) if file.exists() else {}
    for steps in STEPS:
        for sampler in SOLVERS:
            key = f"{sampler} {steps}"
            if key not in found:
                error = (made(sampler, steps) - reference).square().mean((1, 2, 3)).sqrt() * 127.5
                found[key] = error.tolist()
                file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def draw(found: dict[str, list[float]], out: str) -> None:
    """The figure, and the table's lines on stdout."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    print("| solver | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    for sampler in SOLVERS:
        means = [sum(found[f"{sampler} {steps}"]) / len(found[f"{sampler} {steps}"]) for steps in STEPS]
        print(f"| `{sampler}` | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
        axes.plot(STEPS, means, marker="o", label=sampler)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel=f"gray levels from DDIM in {REFERENCE} steps")
    axes.set_xticks(STEPS, map(str, STEPS))
    axes.legend()
    figure.savefig(Path(out).with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    words = sys.argv[1:]
    images, size, scale = (*words[5:], "8", "128", "2")[:3] if len(words) < 8 else words[5:8]
    draw(measure(*words[:5], int(images), int(size), float(scale)), words[4])

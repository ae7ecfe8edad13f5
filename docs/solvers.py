"""Measures what a model's images are by each solver and number of steps, and draws it.

  python -m docs.solvers run/config.yaml run/checkpoints/last.ckpt DATA items.json out --scale 2 --mask-scale 2 \
      --judge work_dirs/tiny/tiny.py work_dirs/tiny/iter_1000.pth

From the same noise: how far they are from those of DDIM in 200 steps, in gray levels; with a segmentor, how well it
finds the masks in them (mIoU over all images). Writes out.json, as far as it is, and goes on from there; then out.svg.
Items name ref_image, as those of a synthesis.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.build import create_model
from cldm.data.pairs import PairedImages
from cldm.synthesis.judging import Judge
from cldm.synthesis.options import SamplingOptions
from cldm.synthesis.run import collate, paint
from common.devices import pick_device
from common.files import atomic_path
from common.images import IGNORE
from common.plots import plt
from common.scores import confusion, scores
from ldm.models.choices import SOLVERS
from segmentation.judge import open_judge

STEPS = (5, 10, 15, 20, 50)
REFERENCE = 200
LEVELS = (1, 2, 5, 10, 20)  # marks of the figure


def batch_of(model: Any, given: argparse.Namespace) -> dict[str, Any]:
    """The first items as a batch, with seed 0."""
    data = PairedImages(
        given.data_root,
        given.items,
        given.size,
        0,
        model.hint_encoding,
        model.classes,
        use_reference=True,
        multiple_of=model.multiple,
    )
    return {**collate([data[i] for i in range(given.images)]), "job_seed": [0] * given.images}


def found_masks(judge: Judge, images: Tensor, masks: list[str]) -> float:
    """The mIoU of the masks that a segmentor finds in images (B, bands, H, W) of [-1, 1], pooled over all of them."""
    total: Any = 0
    for image, mask in zip(images, masks, strict=True):
        with torch.no_grad():
            logits, found = judge.look((image[None].float() + 1) * 127.5)
        height, width = found.shape[1:]
        total = total + confusion(found[0].numpy(), judge.labels(mask, (height, width)), logits.shape[1], IGNORE)
    return float(scores(total, [str(c) for c in range(len(total) - 1)])["mIoU"])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """By "solver steps": differences from the reference (gray levels), seconds an image, and mIoU with a segmentor."""
    model = create_model(given.config, given.ckpt, use_ema=given.use_ema).requires_grad_(False)
    device = torch.device(pick_device("auto"))
    model.to(device).accelerate()
    judge = open_judge(*given.judge) if given.judge else None
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch_of(model, given).items()}
    kept, file = Path(f"{given.out}.pt"), Path(f"{given.out}.json")
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    found = json.loads(file.read_text()) if file.exists() else {"settings": settings}
    if found["settings"] != settings:
        raise SystemExit(f"{file}: of other settings ({found['settings']}); name another out")
    with atomic_path(file) as path:
        path.write_text(json.dumps(found, indent=1) + "\n")

    def made(sampler: str, steps: int) -> tuple[Tensor, float]:
        start = time.perf_counter()
        scales = {"scale": given.scale, "mask_scale": given.mask_scale, "guidance_rescale": given.guidance_rescale}
        options = SamplingOptions(sampler=sampler, steps=steps, spacing="trailing", **scales)
        with torch.inference_mode():
            result = paint(model, batch, options).clamp(-1, 1).cpu()
        return result, (time.perf_counter() - start) / given.images

    if not kept.exists():
        with atomic_path(kept) as path:
            torch.save(made("ddim", REFERENCE)[0], path)
    reference, masks = torch.load(kept, weights_only=True), batch["mask_path"]
    if judge is not None and "reference" not in found:
        found["reference"] = {"miou": found_masks(judge, reference, masks)}
    for steps in STEPS:
        for sampler in SOLVERS:
            if (key := f"{sampler} {steps}") not in found:
                images, seconds = made(sampler, steps)
                error = (images - reference).square().mean((1, 2, 3)).sqrt() * 127.5
                found[key] = {"gray_levels": error.mean().item(), "seconds": seconds}
                if judge is not None:
                    found[key]["miou"] = found_masks(judge, images, masks)
                print(key, found[key], flush=True)
                with atomic_path(file) as path:
                    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def draw(found: dict[str, Any], out: str) -> None:
    """The figure, and the tables' lines on stdout."""
    kinds = {"gray_levels": f"gray levels from DDIM in {REFERENCE} steps"}
    if "reference" in found:
        kinds["miou"] = "mIoU of the masks"
    figure, several = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 3.5), squeeze=False)
    for axes, (kind, label) in zip(several[0], kinds.items(), strict=True):
        print(f"| {label} | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
        for sampler in SOLVERS:
            values = [found[f"{sampler} {steps}"][kind] for steps in STEPS]
            print(f"| `{sampler}` | " + " | ".join(f"{v:.1f}" if v > 1 else f"{v:.3f}" for v in values) + " |")
            axes.plot(STEPS, values, marker="o", label=sampler)
        axes.set(xscale="log", xlabel="steps", ylabel=label, yscale="log" if kind == "gray_levels" else "linear")
        axes.set_xticks(STEPS, map(str, STEPS))
        axes.minorticks_off()
        if kind == "gray_levels":
            axes.set_yticks(LEVELS, map(str, LEVELS))
    several[0][0].legend()
    if "reference" in found:
        several[0][1].axhline(found["reference"]["miou"], color="gray", linestyle=":")
        print(f"DDIM in {REFERENCE} steps: {found['reference']['miou']:.3f}")
    figure.tight_layout()
    figure.savefig(f"{out}.svg", metadata={"Date": None})


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "ckpt", "data_root", "items", "out"):
        parser.add_argument(name)
    parser.add_argument("--images", type=int, default=8, help="the first of the list")
    parser.add_argument("--size", type=int, default=128, help="side in px")
    parser.add_argument("--scale", type=float, default=2.0, help="of the guidance by text")
    parser.add_argument("--mask-scale", type=float, default=1.0, help="of that by the mask")
    parser.add_argument("--guidance-rescale", type=float, default=0.0)
    parser.add_argument("--use-ema", action="store_true", help="the checkpoint's running averages")
    parser.add_argument("--judge", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="an mmseg segmentor")
    given = parser.parse_args()
    draw(measure(given), given.out)


if __name__ == "__main__":
    main()

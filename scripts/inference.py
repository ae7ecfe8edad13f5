r"""Synthesizes images: one an item of the list and seed, after the item's mask, reference image and prompt.

  bash inference.sh --config configs/model/tisynth_v15.yaml --ckpt GID_model.ckpt --data-root DATA \
      --train-txt-file DATA/inference_set_items.json --outdir synth --seed 0 --gpus 0,1

Writes <mask name>_seed_<seed>.jpg and samples.jsonl, which says what each image was made of. Started again, it makes
what is missing; images that were made of something else are refused by name, or made again with --remake.
"""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from cldm.build import create_model, load_config
from cldm.data.pairs import REFERENCE_FITS, PairedImages
from cldm.synthesis.planning import (
    REFERENCE_LATENTS,
    Job,
    Recipe,
    SynthesisOptions,
    check_names,
    config_hash,
    look,
    plan,
    refuse_mixture,
)
from cldm.synthesis.prompts import cut_lines, read_long_prompts, reading
from cldm.synthesis.records import working_in
from cldm.synthesis.run import JobDataset, collate, few_steps, write_images
from common.command import add_trust, parser, run
from common.converters import batch_size, integer, number, pixels, workers
from common.devices import parse_devices
from common.errors import InputError
from common.files import check_writable, file_hash
from common.schema import one_line
from common.trust import trust
from ldm.models.schedule import SAMPLERS, SPACINGS

MODEL = Path(__file__).resolve().parents[1] / "configs" / "model" / "tisynth_v15.yaml"  # published
LAUNCHED = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # set by torchrun, Lightning for its children, SLURM
PRECISIONS = ("32", "bf16", "16", "bf16-mixed", "16-mixed")
PUBLISHED_PRECISIONS = ("full", "autocast")
DATASETS = ("GID26K", "COCO", "ADE20K")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    options = parser(__doc__ or "")
    add = options.add_argument
    add("--config", type=Path, default=MODEL, metavar="YAML", help="model settings, or a training run's config.yaml")
    add("--ckpt", type=Path, required=True, help="weights: .ckpt, .safetensors or a diffusers folder")
    add("--use-ema", action="store_true", help="use the checkpoint's running averages (model_ema.*)")
    add("--allow-mismatch", nargs="+", default=[], metavar="MODULE", help="modules that --ckpt need not fit")
    add("--data-root", required=True, metavar="DIR", help="folder that the list's paths are relative to")
    add("--train-txt-file", "--txt-file", dest="items", required=True, metavar="FILE", help="items with ref_image")
    add("--outdir", type=Path, required=True, metavar="DIR", help="folder of the images; made if need be")
    add("--seed", type=integer(0, 2**62), default=42, help="first seed")
    add("--num-samples", type=integer(1, 100_000), default=1, help="images a mask: seeds seed, seed + 1, ...")
    add("--scale", type=number(0, 1000), default=9.0, help="guidance scale; 1 is no guidance")
    add("--ddim-steps", "--steps", dest="steps", type=integer(1, 500), default=50, help="denoising steps")
    add("--sampler", choices=SAMPLERS, default="ddim", help="solver")
    add(
        "--spacing",
        choices=SPACINGS,
        default="auto",
        help="time steps: leading (published), or trailing, from the "
        "noise's end, for few steps; auto: leading, but trailing for a single step",
    )
    add("--ddim-eta", type=number(0, 1), default=0.0, help="share of fresh noise a step, for ddim; 0 is deterministic")
    add("--size", type=pixels, nargs="+", metavar="PX", help="side, or height and width; each mask's by default")
    add(
        "--reference-fit",
        choices=REFERENCE_FITS,
        default="crop",
        help="a reference of another shape than its mask: keep its middle, or stretch it (published)",
    )
    add(
        "--reference-latent",
        choices=REFERENCE_LATENTS,
        default="mode",
        help="what the model reads of a reference: "
        "the mode of its latent's distribution, or a sample (published; drawn by image's name and seed)",
    )
    add("--long-prompts", action="store_true", help="read prompts beyond 75 tokens in windows of 75; not cut")
    add("--classes", metavar="TABLE", help="class table to check masks by: FUSU, GID, LoveDA, MBRSC or a classes.json")
    add("--batch-size", type=batch_size, default=8, help="images at once on a device")
    add("--num-workers", type=workers, default=2, help="processes that read items, a device")
    add(
        "--precision",
        choices=(*PRECISIONS, *PUBLISHED_PRECISIONS),
        default="32",
        help="of the "
        "weights, or mixed: weights in 32 bit; published: full is 32, autocast 16-mixed on a GPU, 32 on the CPU",
    )
    add("--gpus", default="auto", help="auto, cpu, or indices: 0 or 0,1,2,3")
    add("--num-nodes", type=integer(1), default=1, help="machines; start the same command on each by SLURM or torchrun")
    add("--format", choices=("jpg", "png"), default="jpg", help="of the images")
    add("--quality", type=integer(1, 100), default=95, help="of JPEG files, 1 to 100")
    add("--split-guidance", action="store_true", help="the two texts one after the other: less memory, slower")
    add("--compile", action="store_true", help="torch.compile the networks: slow start, quicker steps")
    add("--only", nargs="+", default=[], metavar="NAME", help="make just these images (<mask name>_seed_<seed>), again")
    add("--remake", action="store_true", help="make images again that were made otherwise than this command would")
    add("--skip-invalid", action="store_true", help="leave faulty items out instead of stopping")
    add("--follow-links", action="store_true", help="take files outside --data-root that links below it lead to")
    published = options.add_argument_group("published options, checked or without effect")
    published.add_argument("--dataset", choices=DATASETS, help="GID26K; the two others were never implemented")
    for side in ("--H", "--W"):
        published.add_argument(side, type=pixels, metavar="PX", help="of all masks; nothing is resized by it")
    published.add_argument("--C", type=integer(1), help="channels of the latent, as the model has them")
    published.add_argument("--f", type=integer(1), help="image pixels a latent pixel, as the model has them")
    published.add_argument("--fixed-code", action="store_true", help="without effect, as published")
    published.add_argument("--err-log", metavar="FILE", help="without effect: faults are named before work")
    add_trust(options)
    add("--dry-run", action="store_true", help="check everything, print the plan, and stop")
    return options


def check_together(args: argparse.Namespace) -> None:
    """Refuses options that contradict each other."""
    if args.ddim_eta and args.sampler != "ddim":
        raise InputError(f"--ddim-eta {args.ddim_eta}: only --sampler ddim takes fresh noise")
    if args.size and len(args.size) > 2:
        raise InputError("--size: write one number, or height and width")


def published_options(args: argparse.Namespace) -> list[str]:
    """What published options mean here, in a line each.

    Raises:
        InputError: a data set that never was implemented.
    """
    lines = []
    if args.dataset not in (None, "GID26K"):
        raise InputError(f"--dataset {args.dataset}: was never implemented; leave it out, the list says which files")
    if args.precision in PUBLISHED_PRECISIONS:
        gpu = parse_devices(args.gpus)["accelerator"] == "gpu"
        given, args.precision = args.precision, "16-mixed" if args.precision == "autocast" and gpu else "32"
        lines.append(f"--precision {given}: taken as --precision {args.precision}")
    if args.fixed_code:
        lines.append("--fixed-code: without effect, as published; an image's noise follows from --seed and its name")
    if args.err_log:
        lines.append(
            "--err-log: without effect; faulty items are named before work starts, --skip-invalid leaves them out"
        )
    return lines


def check_shape(args: argparse.Namespace, model: Any, dataset: PairedImages) -> None:
    """Refuses a published option that says another shape than model and masks have.

    Raises:
        InputError: names the option and what is there.
    """
    for option, given, has in (("--C", args.C, model.channels), ("--f", args.f, model.factor)):
        if given not in (None, has):
            raise InputError(f"{option} {given}: the model of {args.config} has {has}; leave the option out")
    for item in dataset.items:
        sides = dataset.size or item.size or (0, 0)
        for option, given, side in zip(("--H", "--W"), (args.H, args.W), sides, strict=True):
            if given not in (None, side):
                raise InputError(
                    f"{option} {given}: line {item.line} of the list, field source: "
                    f"{one_line(item.name, 80)} would be {sides[1]} x {sides[0]} px (width x height); "
                    f"{option} resizes nothing: leave it out, or resize by --size"
                )


def main() -> None:
    """Checks, plans, and makes what is missing."""
    args = arguments().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_together(args)
    lines = published_options(args)
    trust(args.trust)
    devices = parse_devices(args.gpus)
    model = create_model(args.config, args.ckpt, args.allow_mismatch, use_ema=args.use_ema)
    dataset = PairedImages(
        args.data_root,
        args.items,
        size=None if args.size is None else args.size if len(args.size) == 2 else args.size[0],
        hint_encoding=model.hint_encoding,
        classes=args.classes or model.classes,
        skip_invalid=args.skip_invalid,
        follow_links=args.follow_links,
        use_reference=True,
        masks_only=not model.fuses,
        multiple_of=model.multiple,
        reference_fit=args.reference_fit,
    )
    dataset.check_hints(model.control_model.hint_channels)
    check_shape(args, model, dataset)
    first = getattr(rank_zero_only, "rank", 0) == 0
    if dataset.faults:
        print(f"{len(dataset.faults)} faulty items are left out")
    outdir = args.outdir
    options = SynthesisOptions(
        outdir,
        args.steps,
        args.sampler,
        args.scale,
        args.ddim_eta,
        args.format,
        args.quality,
        args.split_guidance,
        args.spacing,
        args.reference_latent,
    )
    seeds = range(args.seed, args.seed + args.num_samples)
    check_names(dataset, seeds)
    about: dict[str, Any] = {
        "checkpoint": args.ckpt.name,
        "checkpoint_hash": file_hash(args.ckpt),
        "use_ema": args.use_ema,
        "config": args.config.name,
        "config_hash": config_hash(OmegaConf.to_container(load_config(args.config).model, resolve=True)),
        "precision": args.precision,
    }
    if args.long_prompts:
        read_long_prompts(model)
    remedy = "shorten it" if args.long_prompts else "--long-prompts reads more, in windows of 75 tokens"
    for line in [*lines, *cut_lines(model, dataset, remedy), *few_steps(model, options)] if first else []:
        print(line)
    recipe = Recipe(dataset, options, about, partial(reading, model))
    fine, others = (set(), {}) if args.only else look(dataset, recipe, outdir, seeds)
    if not args.remake:
        refuse_mixture(outdir, others)
    jobs: list[Job] = []
    if first:  # the others take its jobs: a command beside this one may change the folder at any time
        jobs = plan(dataset, recipe, seeds, fine, args.only)
        again = f", {len(others)} of them again" if others else ""
        print(
            f"{len(dataset)} items, {args.num_samples} seeds: {len(fine)} images are in {outdir}, "
            f"{len(jobs)} to make{again}"
        )
    nearest = next(folder for folder in (outdir, *outdir.absolute().parents) if folder.exists())
    check_writable(nearest if args.dry_run else outdir, "--outdir")
    if args.dry_run:
        if jobs:
            collate([JobDataset(dataset, jobs)[0]])
        return
    if first and not jobs and not any(name in os.environ for name in LAUNCHED):
        with working_in(outdir):  # what a killed run left is tidied up, even if its images are all there
            return
    model.accelerate(compile_networks=args.compile)
    torch.set_float32_matmul_precision("high")
    write_images(
        model,
        dataset,
        jobs,
        options,
        recipe,
        args.batch_size,
        args.num_workers,
        num_nodes=args.num_nodes,
        precision=args.precision,
        **devices,
    )
    if first:
        print(f"{len(jobs)} images written to {outdir}")


if __name__ == "__main__":
    run(main)

"""A folder of synthesized images: what is missing there is made and written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from cldm.build import create_model, load_config
from cldm.control_ldm import ControlLDM
from cldm.data.pairs import PairedImages
from cldm.lora_files import ALLOWED, add_loras, file_of
from cldm.synthesis.formats import check_formats, options_of
from cldm.synthesis.guiding import few_steps, guidance_of
from cldm.synthesis.judging import NO_JUDGES, Judges
from cldm.synthesis.options import SynthesisOptions
from cldm.synthesis.planning import (
    FolderState,
    Job,
    Recipe,
    check_names,
    compare_with_folder,
    config_hash,
    missing_images,
    refuse_mixture,
)
from cldm.synthesis.prompts import cut_lines, read_long_prompts, reading
from cldm.synthesis.records import working_in
from cldm.synthesis.run import JobDataset, collate, write_images
from common.bands import read_bands_file
from common.classes import load_class_table, plain_name
from common.command import note
from common.devices import parse_devices, use_threads
from common.errors import InputError
from common.files import check_writable, file_hash
from common.schema import one_line
from common.trust import trust
from ldm.compiling import NEEDS_GPU
from ldm.models.schedule import spacing_of
from ldm.quantization import quantizer
from ldm.training.ranks import first_process, take_place

LAUNCHED = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # set by torchrun, Lightning for its children, SLURM


def read_items(options: SynthesisOptions, model: ControlLDM) -> PairedImages:
    """The list's items, checked, as the model reads them.

    Raises:
        InputError: a faulty list, or masks that the model does not read.
    """
    size = options.size
    items = PairedImages(
        options.data_root,
        options.items,
        size=None if size is None else size if len(size) == 2 else size[0],
        hint_encoding=model.hint_encoding,
        classes=options.classes or model.classes,
        skip_invalid=options.skip_invalid,
        follow_links=options.follow_links,
        use_reference=True,
        masks_only=not model.fuses,
        start_image=options.paints_over,
        multiple_of=model.multiple,
        reference_fit=options.reference_fit,
        bands=model.bands,
        several_maps=options.several_maps,
    )
    items.check_hints(model.control_model.hint_channels)
    return items


def check_shape(options: SynthesisOptions, model: ControlLDM, items: PairedImages) -> None:
    """Refuses a published option that says another shape than model and masks have.

    Raises:
        InputError: names the option and what is there.
    """
    for field, has in (("latent_channels", model.channels), ("latent_factor", model.factor)):
        if (given := getattr(options, field)) not in (None, has):
            raise InputError(f"‹{field}› {given}: the model of {options.config} has {has}; leave the option out")
    for item in items.items:
        sides = items.size or item.size or (0, 0)
        for field, side in zip(("mask_height", "mask_width"), sides, strict=True):
            if (given := getattr(options, field)) not in (None, side):
                raise InputError(
                    f"‹{field}› {given}: line {item.line} of the list, field source: "
                    f"{one_line(item.name, 80)} would be {sides[1]} x {sides[0]} px (width x height); "
                    f"‹{field}› resizes nothing: leave it out, or resize by ‹size›"
                )


def never_hidden(options: SynthesisOptions) -> list[str]:
    """A line for each condition that guides though no training hid it, as far as the configuration says."""
    config = load_config(options.config, options.classes)
    lines = []
    for field, hidden_by in (("mask_scale", ("drop_mask_p", "unlabeled")), ("reference_scale", ("drop_reference_p",))):
        params = [f"data.params.train.params.{name}" for name in hidden_by]
        if getattr(options, field) != 1 and not any(OmegaConf.select(config, name) for name in params):
            lines.append(
                f"‹{field}› {getattr(options, field):g}: {options.config} does not say that training hid it "
                f"({params[0]}): what such a model makes without it is unknown; a run's config.yaml would say"
            )
    return lines


def other_classes(options: SynthesisOptions, model: ControlLDM) -> list[str]:
    """A line where the data root's ``classes.json`` calls an id by another name than the model's class table does."""
    beside = Path(options.data_root) / "classes.json"
    if options.classes is not None or model.classes is None or not beside.is_file():
        return []
    try:
        data, known = (load_class_table(str(table)).names for table in (beside, model.classes))
    except InputError:  # a file of that name which is no class table, or a table that lies elsewhere
        return []
    for i, (there, here) in enumerate(zip(data, known, strict=False)):
        if plain_name(there) != plain_name(here):
            return [
                f"{beside}: class {i} is {one_line(there, 60)}, which the model knows as {one_line(here, 60)}, and "
                "paints; a model of these classes begins from it by init-checkpoint --grow"
            ]
    return []


def recipe_of(options: SynthesisOptions, model: ControlLDM, items: PairedImages, judges: Judges = NO_JUDGES) -> Recipe:
    """What the records of these images will say."""
    files = [(file_of(path), scale) for path, scale in options.lora_files]
    of_model = {
        **identity(options.config, options.ckpt, options.use_ema, options.classes),
        "lora": [path.name for path, _ in files],
        "lora_hash": [file_hash(path) for path, _ in files],
        "lora_scale": [scale for _, scale in files],
        "precision": options.precision,
        "quantize": options.quantize,
    }
    spacing = spacing_of(options.spacing, options.steps, model.zero_terminal_snr, options.sampler)
    return Recipe(items, replace(options, spacing=spacing), of_model, partial(reading, model), judges)


def identity(config: Path, checkpoint: Path, use_ema: bool, classes: str | None = None) -> dict[str, Any]:
    """What records say of a model: its files by name and content, and the class table that is given beside them."""
    model = load_config(config, classes).model
    return {
        "checkpoint": checkpoint.name,
        "checkpoint_hash": file_hash(checkpoint),
        "use_ema": use_ema,
        "config": config.name,
        "config_hash": config_hash(OmegaConf.to_container(model, resolve=True)),
    }


def check_devices(options: SynthesisOptions) -> None:
    """Refuses, before the model is built, what the devices do not have.

    Raises:
        InputError: no such device, or it has no CUDA graphs, precision or such weights.
    """
    on_gpu = parse_devices(options.gpus)["accelerator"] == "gpu"
    if options.precision == "16-mixed" and not on_gpu:
        raise InputError("‹precision› 16-mixed: the CPU does not have it; take bf16-mixed, bf16 or 32")
    if options.compile == "graphs" and not on_gpu:
        raise InputError(NEEDS_GPU)
    if options.quantize != "none":
        quantizer(options.quantize, on_gpu)


def check_judges(judges: Judges, options: SynthesisOptions, items: PairedImages) -> None:
    """Refuses segmentors that cannot do what is asked of them.

    Raises:
        InputError: one is named and not there, or cannot take the masks or images of this size.
    """
    sizes = {items.size or item.size or (0, 0) for item in items.items}
    masks = [str(item.mask) for item in items.items]
    wanted = {"rectify": (bool(options.rectify), judges.guide), "judge": (options.chooses, judges.judge)}
    for name, (asked, segmentor) in wanted.items():
        if asked and segmentor is None:
            raise InputError(f"‹{name}›: no segmentor is open: give synthesize_folder what opens it")
        if asked and segmentor is not None:
            segmentor.check(masks, sizes, gradient=name == "rectify")


def synthesize_folder(options: SynthesisOptions, open_judges: Callable[[], Judges] = Judges) -> int:
    """Makes the images of a list that are missing in ``outdir``, and writes them with their records.

    Everything is checked before the first image is made, and said in a few lines. Images of ``outdir`` that were made
    of something else are refused by name, unless ``remake`` is set.

    Args:
        options: what, of what, and where to.
        open_judges: opens the segmentors that the options name.

    Returns:
        how many images were made; 0 with ``dry_run``.

    Raises:
        InputError: anything the work would trip over.
    """
    trust(options.trust)
    check_devices(options)
    take_place(options.gpus, options.num_nodes)
    use_threads(options.threads)
    judges = open_judges()
    stated = None if options.bands is None else read_bands_file(options.bands)
    over: dict[str, Any] = {} if stated is None else {"bands": stated.model_dump(exclude_defaults=True)}
    if options.classes is not None:
        over["classes"] = options.classes
    allow = [module for module in options.allow_mismatch if module != ALLOWED]
    model = create_model(options.config, options.ckpt, allow, use_ema=options.use_ema, **over)
    added = add_loras(model, options, load_config(options.config, options.classes).model.params)
    if options.rgb is not None:
        if model.bands is None:
            raise InputError("‹rgb›: the model's images have three bands, which pictures show; leave it out")
        model.bands = model.bands.showing(options.rgb)
    if model.bands is not None:
        judges = judges.of_bands(model.bands)
    items = read_items(options, model)
    check_shape(options, model, items)
    check_formats(items.items, options_of(options, model), model.bands)
    guidance_of(model, options)  # refused before the work
    check_judges(judges, options, items)
    if items.faults:
        print(f"{len(items.faults)} faulty items are left out")
    check_names(items, options.seeds)
    if options.long_prompts:
        read_long_prompts(model)
    first = first_process()
    if first:
        for line in (*added, options.preset_line()):
            if line:
                print(line)
        remedy = "shorten it" if options.long_prompts else "‹long_prompts› reads more, in windows of 75 tokens"
        doubts = [*never_hidden(options), *other_classes(options, model)]
        for line in [*cut_lines(model, items, remedy), *few_steps(model, options), *doubts]:
            note(line, sys.stdout)
    recipe = recipe_of(options, model, items, judges)
    state = FolderState() if options.only else compare_with_folder(items, recipe, options.outdir, options.seeds)
    if not options.remake:
        refuse_mixture(options.outdir, state.different)
    jobs: list[Job] = []
    if first:  # the other processes take its list: a command beside this one may change the folder at any time
        jobs = missing_images(items, recipe, options.seeds, state.as_asked, options.only)
        again = f", {len(state.different)} of them again" if state.different else ""
        seeds = "seeds of their own" if any(item.seeds for item in items.items) else f"{options.num_samples} seeds"
        print(
            f"{len(items)} items, {seeds}: {len(state.as_asked)} images are in {options.outdir}, "
            f"{len(jobs)} to make{again}"
        )
    nearest = next(folder for folder in (options.outdir, *options.outdir.absolute().parents) if folder.exists())
    check_writable(nearest if options.dry_run else options.outdir, "‹outdir›")
    if options.dry_run:
        if jobs:
            collate([JobDataset(items, jobs)[0]])  # the first item is read, as it would be
        return 0
    if first and not jobs and not any(name in os.environ for name in LAUNCHED):
        with working_in(options.outdir):  # tidies up what a killed run left, even if its images are all there
            return 0
    torch.set_float32_matmul_precision("high")
    write_images(model, items, jobs, options, recipe, judges)
    return len(jobs)

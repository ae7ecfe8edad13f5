"""Writes a model as a folder that diffusers' ``DiffusionPipeline`` loads without this project."""

from __future__ import annotations

import importlib.metadata
import inspect
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import DDIMScheduler, LCMScheduler
from torch import nn

from cldm.build import create_model, load_config
from cldm.config_schema import BandsAutoencoderParams
from cldm.control_ldm import ControlLDM
from cldm.data.hints import HintEncoder, ignored_value
from cldm.diffusers_export import networks
from cldm.diffusers_export.card import model_card
from cldm.diffusers_export.options import ExportOptions
from cldm.diffusers_export.remote import pipeline
from cldm.diffusers_export.remote.tisynth_vae import BlockAutoencoder
from cldm.diffusers_export.text import as_clip
from cldm.diffusers_export.weights import first_stage_to_published, take
from cldm.distillation.options import FEW_STEPS
from cldm.distillation.options import TARGET as STUDENT
from cldm.distillation.student import ConsistencyStudent
from cldm.start_checkpoint import DTYPES
from common.bands import Bands
from common.classes import ClassTable, load_class_table, split_variant, table_file
from common.configuration import plain
from common.errors import InputError
from common.files import atomic_folder, refuse_content, write_json
from common.trust import trust
from ldm.diffusers_format import unet_to_published
from ldm.models.autoencoder import SpaceToDepth
from ldm.models.schedule import make_scheduler, spacing_of
from ldm.modules.encoders import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.targets import class_path

DIFFUSERS = "0.41"  # the release whose classes and folders these are
FORMAT = 1  # of the folder
PIPELINE = ["pipeline", "TISynthPipeline"]
DESCRIPTION, TABLE = "tisynth.yaml", "classes.json"  # what the way back reads
MODEL = "cldm.control_ldm.ControlLDM"


@dataclass(frozen=True)
class Source:
    """What an export reads beside the weights.

    Attributes:
        model: the configuration's section ``model``, with its class table and without LoRA, whose weights are merged.
        table: the class table.
        table_file: its file, where it is not a built-in one.
    """

    model: dict[str, Any]
    table: ClassTable | None
    table_file: Path | None


def check_release() -> None:
    """Refuses another release of diffusers than the one that folders are written for.

    Raises:
        InputError: it is another.
    """
    found = importlib.metadata.version("diffusers")
    if not found.startswith(f"{DIFFUSERS}."):
        raise InputError(f"diffusers {found}: folders are those of {DIFFUSERS}; install diffusers=={DIFFUSERS}.*")


def read_source(options: ExportOptions) -> Source:
    """The configuration and the class table.

    Raises:
        InputError: no model with a mask branch, or a class table that is needed and not named.
    """
    model = plain(load_config(options.config, options.classes).model)
    if class_path(model["target"]) not in (MODEL, STUDENT):
        raise InputError(f"{options.config}, field model.target: {model['target']}: has no mask branch; name {MODEL}")
    params = {**model["params"], "lora": None}
    name = options.classes or params.get("classes")
    encoding = params.get("hint_encoding", "index")
    if name is None and encoding != "index":
        raise InputError(f"‹classes›: the mask branch reads hint_encoding {encoding}, of a class table; name it")
    table = None if name is None else load_class_table(name, encoding == "table")
    file = None
    if name is not None and (file := table_file(name)) is not None:
        variant = split_variant(name)[1]
        name = f"{TABLE}:{variant}" if variant else TABLE
    return Source({**model, "params": {**params, "classes": name}}, table, file)


def hints_of(encoding: str, table: ClassTable | None) -> dict[str, Any] | None:
    """What the mask branch reads of each class, as the pipeline has it; None where it is the id / 255."""
    if encoding == "index":
        return None
    assert table is not None
    values = HintEncoder(encoding, table)(np.arange(len(table), dtype=np.uint8)[None])  # (C, 1, N)
    return {
        "values": values[:, 0].T.tolist(),
        "ignored": ignored_value(encoding),
        "classes": {str(i): name for i, name in enumerate(table.names)},
    }


def scaling_of(bands: Bands) -> dict[str, Any]:
    """What is stated of the images' bands, as the pipeline has it; ``shown`` are those that pictures show, from 0."""
    stated = bands.model_dump(include={"ranges", "dtype", "nodata", "names"})
    return {
        **stated,
        "take": bands.numbers,
        "scales": bands.scales or [1.0] * bands.count,
        "offsets": bands.offsets or [0.0] * bands.count,
        "shown": list(bands.seen),
    }


def block_autoencoder(stage: SpaceToDepth, scaling_factor: float, dtype: torch.dtype) -> nn.Module:
    """``SpaceToDepth`` as two convolutions: their weights are what it makes of one pixel, and of one number alone."""
    size, channels = stage.factor, stage.latent_channels
    synthesis = stage.decode(torch.eye(channels)[:, :, None, None])  # (C, bands, f, f)
    bands = synthesis.shape[1]
    pixels = torch.eye(bands * size * size).unflatten(1, (bands, size, size))
    analysis = stage.encode(pixels).mode()[:, :, 0, 0].T.reshape(channels, bands, size, size)
    network = BlockAutoencoder(bands, channels, size, scaling_factor)
    weights = {"analysis.weight": analysis, "synthesis.weight": synthesis}
    network.load_state_dict({name: value.to(dtype) for name, value in weights.items()}, assign=True)
    return network


def components(model: ControlLDM, params: Mapping[str, Any], dtype: torch.dtype) -> dict[str, nn.Module]:
    """The networks in diffusers' classes, by the names of the pipeline's parts, with the model's weights.

    Args:
        model: with its weights.
        params: of the configuration that it was built by.
        dtype: of the weights.

    Raises:
        InputError: a part that neither diffusers nor the files that travel with the folder can say.
    """
    text = model.cond_stage_model
    if not isinstance(text, FrozenCLIPEmbedder) or text.layer != "last":
        raise InputError(f"cond_stage_config: {type(text).__name__}: of CLIP, only the last layer is exported")
    with torch.device("meta"):
        branches = {"controlnet": networks.branch(params["control_stage_config"], "control_stage_config")}
        if model.ssl_stage_model is not None:
            branches["reference_branch"] = networks.branch(params["ssl_stage_config"], "ssl_stage_config")
        unet = networks.unet(params["unet_config"], model.fuses)
    own = {"controlnet": model.control_model, "reference_branch": model.ssl_stage_model}
    parts = {name: take(part, own[name].state_dict(), unet_to_published, dtype) for name, part in branches.items()}  # type: ignore[union-attr]
    parts["unet"] = take(unet, model.model.diffusion_model.state_dict(), unet_to_published, dtype)
    stage = model.first_stage_model
    if isinstance(stage, SpaceToDepth):
        parts["vae"] = block_autoencoder(stage, model.scale_factor, dtype)
    else:
        with torch.device("meta"):
            stock = networks.autoencoder(
                BandsAutoencoderParams(**params["first_stage_config"]["params"]), model.scale_factor
            )
        parts["vae"] = take(stock, stage.state_dict(), first_stage_to_published, dtype)
    parts["text_encoder"] = text.transformer["text_model"].to(dtype)
    return parts


def scheduler_of(model: ControlLDM, params: Mapping[str, Any]) -> DDIMScheduler | LCMScheduler:
    """DDIM, or a student's LCM, as ``ldm.models.schedule`` makes it; the noise schedule is said by its two ends."""
    sampler = "lcm" if isinstance(model, ConsistencyStudent) else "ddim"
    spacing = spacing_of("auto", 50, model.zero_terminal_snr, sampler)
    made = make_scheduler(sampler, model.betas, model.parameterization, spacing)
    options = {name: value for name, value in made.config.items() if not name.startswith("_")}
    ends = {
        "beta_start": params.get("linear_start", 0.00085),
        "beta_end": params.get("linear_end", 0.012),
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
    }
    return type(made)(**{**options, **ends})


def export(options: ExportOptions) -> list[str]:
    """Writes the folder, whole or not at all.

    Returns:
        a line for each component, and one about the folder.

    Raises:
        InputError: a model that cannot be read or exported, or a folder that is there already.
    """
    check_release()
    refuse_content(options.out, "‹out›")
    trust(options.trust)
    source = read_source(options)
    params = source.model["params"]
    over: dict[str, Any] = {"lora": None} | ({} if options.classes is None else {"classes": options.classes})
    model = create_model(options.config, options.weights, use_ema=options.use_ema, **over).requires_grad_(False)
    if model.bands is not None and model.bands.per_image is not None:
        raise InputError(f"{options.config}: bands.per_image: scales each image by itself, which the pipeline does not")
    bands = None if model.bands is None else model.bands.model_dump(exclude_defaults=True)
    if bands is not None:
        params["bands"] = bands  # a checkpoint may be the one that states them
    if isinstance(model.cond_stage_model, FrozenOpenCLIPEmbedder):  # diffusers has no such class
        given = params["cond_stage_config"].get("params") or {}
        model.cond_stage_model, params["cond_stage_config"] = as_clip(model.cond_stage_model, given)
    parts = components(model, params, DTYPES[options.precision])
    lines = []
    with atomic_folder(options.out, "‹out›") as folder:
        index: dict[str, Any] = {
            "_class_name": PIPELINE,
            "_diffusers_version": importlib.metadata.version("diffusers"),
            "_tisynth_format": FORMAT,
        }
        for name, part in parts.items():
            part.save_pretrained(folder / name, safe_serialization=True)  # type: ignore[operator]
            index[name] = [_library(part, folder / name), type(part).__name__]
            numbers = sum(weight.numel() for weight in part.parameters())
            lines.append(f"{name}: {index[name][1]} of {index[name][0]}, {numbers:,} numbers")
        model.cond_stage_model.tokenizer.save(folder / "tokenizer")
        scheduler = scheduler_of(model, params)
        scheduler.save_pretrained(folder / "scheduler")
        index |= {
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", type(scheduler).__name__],
            "factor": model.factor,
            "multiple": model.multiple,
            "hints": hints_of(model.hint_encoding, source.table),
            "bands": None if model.bands is None else scaling_of(model.bands),
            "only_mid_control": not model.fuses and bool(params.get("only_mid_control")),
        }
        if isinstance(model, ConsistencyStudent):
            index |= {"steps": FEW_STEPS, "scale": 1.0}
        write_json(index, folder / "model_index.json", indent=2)
        (folder / "pipeline.py").write_text(inspect.getsource(pipeline))
        (folder / DESCRIPTION).write_text(yaml.safe_dump({"model": source.model}, sort_keys=False))
        if source.table_file is not None:
            shutil.copyfile(source.table_file, folder / TABLE)
        (folder / "README.md").write_text(model_card(options, model, source.table, index))
    return [*lines, f"{options.out}: DiffusionPipeline.from_pretrained({str(options.out)!r}, trust_remote_code=True)"]


def _library(part: nn.Module, folder: Path) -> str:
    """Where diffusers finds a component's class: a library, or a file in its folder, which is then written."""
    module = inspect.getmodule(type(part))
    assert module is not None
    name = module.__name__.rpartition(".")[2]
    if not module.__name__.startswith(pipeline.__name__.rpartition(".")[0]):
        return module.__name__.partition(".")[0]
    (folder / f"{name}.py").write_text(inspect.getsource(module))
    return name

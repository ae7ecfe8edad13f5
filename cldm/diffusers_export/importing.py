"""Makes a checkpoint and a YAML file of a folder that ``export`` wrote: the same weights, tensor for tensor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from torch import Tensor

from cldm.build import create_model, load_config
from cldm.control import BRANCHES
from cldm.control_ldm import ControlLDM
from cldm.diffusers_export.export import DESCRIPTION, DIFFUSERS, FORMAT, PIPELINE, TABLE
from cldm.diffusers_export.options import ImportOptions
from cldm.diffusers_export.weights import Translate, first_stage_to_published
from common.configuration import plain
from common.errors import InputError
from common.files import atomic_folder, refuse_content
from common.schema import OpenSchema, one_line, read_json
from common.trust import trust
from ldm.checkpoint import load_weights, save_state_dict
from ldm.checkpoint_folder import read_parts
from ldm.checkpoint_names import FIRST_STAGE, UNET, published_names
from ldm.diffusers_format import unet_to_published
from ldm.models.autoencoder import SpaceToDepth

AGAIN = "copy it again, or export it again"
# component -> module of our checkpoints, and what translates its names
NETWORKS: dict[str, tuple[str, Translate]] = {
    "unet": (UNET, unet_to_published),
    "vae": (FIRST_STAGE, first_stage_to_published),
    "controlnet": (BRANCHES[0], unet_to_published),
    "reference_branch": (BRANCHES[1], unet_to_published),
}


class Index(OpenSchema):
    """``model_index.json``, as far as it is read."""

    class_name: Any = Field(alias="_class_name")
    release: str = Field("unknown", alias="_diffusers_version")
    format: Any = Field(None, alias="_tisynth_format")


def check_folder(folder: Path) -> None:
    """Refuses a folder that ``export`` did not write, or wrote in another format.

    Raises:
        InputError: it is such a one, or a part of it is missing.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        raise InputError(f"‹folder› {folder}: holds no model_index.json; name what tisynth export-diffusers wrote")
    index = read_json(file, Index, AGAIN)
    if index.class_name != PIPELINE:
        raise InputError(
            f"‹folder› {folder}: holds another pipeline ({one_line(index.class_name, 80)}); of Stable Diffusion, "
            "tisynth init-checkpoint makes a start checkpoint"
        )
    if index.format != FORMAT:
        raise InputError(f"{file}: _tisynth_format {one_line(index.format, 40)}: this version reads {FORMAT}")
    if not index.release.startswith(f"{DIFFUSERS}."):
        raise InputError(f"{file}: written by diffusers {one_line(index.release, 40)}; {DIFFUSERS} is read")
    listed = [name for name, entry in (index.model_extra or {}).items() if isinstance(entry, list)]
    for name in [*(part for part in listed if part != "scheduler"), DESCRIPTION]:
        if Path(name).name == name and not (folder / name).exists():
            raise InputError(f"‹folder› {folder}: its part {name} is missing; {AGAIN}")


def read_weights(folder: Path, model: ControlLDM) -> dict[str, Tensor]:
    """The components' weights under the names of our checkpoints.

    Args:
        folder: with a folder for each component.
        model: says which components there are.

    Raises:
        InputError: a component is missing, damaged, or of another network.
    """

    def read(name: str) -> dict[str, Tensor]:
        part = folder / name
        if not part.is_dir():
            raise InputError(f"‹folder› {folder}: its part {name} is missing; {AGAIN}")
        return read_parts(part)[name]

    state: dict[str, Tensor] = {}
    for name, (module, translate) in NETWORKS.items():
        absent = name == "reference_branch" and not model.fuses
        if absent or (name == "vae" and isinstance(model.first_stage_model, SpaceToDepth)):  # which has no weights
            continue
        state |= {f"{module}.{key}": value for key, value in translate(read(name)).items()}
    return {**state, **published_names(read("text_encoder"))}


def import_folder(options: ImportOptions) -> list[str]:
    """Writes ``model.yaml`` and ``model.safetensors``, and the class table where there is one; all or nothing.

    Returns:
        a line about the weights, and one about the folder.

    Raises:
        InputError: a folder that cannot be read or is none of ours, or one to write that is there already.
    """
    refuse_content(options.out, "‹out›")
    check_folder(options.folder)
    trust(options.trust)
    config = load_config(options.folder / DESCRIPTION)
    model = create_model(config)
    report = load_weights(model, read_weights(options.folder, model), name=str(options.folder))
    section = plain(config.model)
    table = options.folder / TABLE
    with atomic_folder(options.out, "‹out›") as folder:
        if table.is_file():
            shutil.copyfile(table, folder / TABLE)
            section["params"]["classes"] = str(options.out / section["params"]["classes"])
        (folder / "model.yaml").write_text(yaml.safe_dump({"model": section}, sort_keys=False))
        save_state_dict(model.state_dict(), folder / "model.safetensors", {"source": options.folder.name})
    return [f"{report.loaded} tensors from {options.folder}", f"{options.out}: model.yaml, model.safetensors"]

"""Weights of a folder in diffusers' layout: a pipeline or one of its parts, in one file or in shards, with variants."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from common.errors import InputError
from common.schema import OpenSchema, load_json, one_line, read_json
from common.weights import read_tensors

FOLDER_PARTS = ("unet", "vae", "text_encoder", "controlnet")  # of a diffusers pipeline
# a part's weight file, or the index of its shards; a variant (fp16) stands before the suffix or before .json
_FILE = re.compile(
    r"(?P<name>diffusion_pytorch_model|model|pytorch_model)(\.(?P<variant>[\w-]+?))?\.(?P<suffix>safetensors|bin)"
    r"(?P<index>\.index(\.(?P<late>[\w-]+?))?\.json)?"
)
_SHARD = re.compile(r"-\d+-of-\d+")


class ShardIndex(OpenSchema):
    """``*.index.json``: which shard holds which tensor."""

    weight_map: dict[str, str]


def read_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Weights by the file's names, by part.

    Args:
        folder: a pipeline (``unet``, ``vae``, ``text_encoder``, ``controlnet``), or one part.

    Raises:
        InputError: no weights; a part of the pipeline without weights; a damaged file, index or shard.
    """
    parts = [folder / name for name in FOLDER_PARTS if (folder / name).is_dir()] or [folder]
    announced = load_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if isinstance(announced, dict):  # a text encoder that is not there reads [null, null]
        needed = [name for name in FOLDER_PARTS if isinstance(announced.get(name), list) and any(announced[name])]
        if missing := [name for name in needed if folder / name not in parts]:
            raise InputError(
                f"{folder}: model_index.json names a part {missing[0]}, and there is no such folder; "
                "copy or download it again"
            )
    return {part.name: _read_part(part) for part in parts}


def _read_part(part: Path) -> dict[str, Tensor]:
    """A whole file before shards, safetensors before .bin, without a variant before fp16 and its like."""
    found = []
    for file in part.iterdir():
        match = _FILE.fullmatch(file.name)
        if match and not _SHARD.search(file.name):
            variant = match["late"] or match["variant"] or ""
            found.append((match["suffix"] == "bin", variant, match["index"] is not None, file.name))
    if not found and any(_SHARD.search(file.name) for file in part.iterdir()):
        raise InputError(f"{part}: shards of weights without their *.index.json; copy or download it again")
    if not found:
        raise InputError(
            f"{part}: no weights there; a diffusers folder holds {', '.join(FOLDER_PARTS)} with .safetensors files"
        )
    _, _, sharded, name = min(found)
    return _read_shards(part / name) if sharded else read_tensors(part / name)


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index, ShardIndex, "copy or download it again").weight_map
    if not places:
        raise InputError(f"{index}: names no weights; copy or download it again")
    shards: dict[str, dict[str, Tensor]] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\0" in name:
            raise InputError(f"{index}: shard {one_line(name, 80)} is not a file beside it; refused")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: shard {one_line(name, 80)} is missing; copy or download it again")
        shards[name] = read_tensors(index.parent / name)
    if absent := [key for key, name in places.items() if key not in shards[name]]:
        raise InputError(
            f"{index}: {one_line(absent[0], 80)} is not in its shard {places[absent[0]]}; copy or download it again"
        )
    return {key: shards[name][key] for key, name in places.items()}

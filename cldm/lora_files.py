"""LoRA weights that others made for Stable Diffusion 1.x, added to a model's own: W + s (alpha / r) B A.

A fused model keeps Stable Diffusion's U-Net and text encoder as they were, beside what reads the branches: a change
that was learned on these weights belongs to the same weights here. The branches are left as they are.

Files name layers as diffusers does, ``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``, or as kohya's
trainer does, ``lora_unet_down_blocks_0_..._to_q``, some by published names, ``lora_unet_input_blocks_1_1_..._to_q``.
Without dots these are one spelling, by which layers are looked up.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cldm.diffusers_export import networks
from cldm.diffusers_export.weights import names_of
from cldm.options import LoraFileOptions
from common.command import note
from common.configuration import plain
from common.errors import InputError
from common.schema import one_line, parse_json
from common.weights import finite, read_tensors
from ldm.checkpoint import size_of
from ldm.checkpoint_names import TEXT, UNET
from ldm.diffusers_format import unet_to_published
from ldm.modules.lora import BASE

IN_FOLDERS = "pytorch_lora_weights.safetensors"  # as diffusers' trainings write it
ALLOWED = "lora"  # in ``allow_mismatch``
_WEIGHT = re.compile(
    r"(?P<layer>.+?)[._]lora(_(?P<peft>[AB])(\.default)?|_(?P<kohya>down|up)|(_linear_layer)?\.(?P<older>down|up))\.weight"
)
# beginning of a layer's name in files: its part of the model, and what the rest begins with
_PARTS = {
    "lora_unet_": "unet_",
    "lora_te1_": "text_",
    "lora_te_": "text_",
    "unet.": "unet_",
    "text_encoder.": "text_",
    "text_model.": "text_text_model_",
}


@dataclass
class _Layer:
    """What a file holds of one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    more: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """Of one weight matrix: ``factor`` B A, A (r, in, ...) and B (out, r, ...)."""

    down: Tensor
    up: Tensor
    factor: float

    def added_to(self, weight: Tensor) -> Tensor:
        """W (out, in, ...) + factor B A, in 32 bit."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return weight.float() + self.factor * product.reshape(weight.shape).to(weight.device)


@dataclass(frozen=True)
class LoraFile:
    """The changes of a file, by the model's names, and what of the file fits nowhere, with the reason."""

    path: Path
    scale: float
    changes: Mapping[str, Change]
    left: Mapping[str, str]

    def changed(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Names and new values, in 32 bit, of those weights of ``state`` that the file changes.

        Raises:
            InputError: a change that is no finite number.
        """
        for key, change in self.changes.items():
            if key in state:
                value = change.added_to(state[key])
                if not finite(value):
                    raise InputError(f"‹lora› {self.path}: NaN or infinite numbers for {key}; take another file")
                yield key, value

    def line(self) -> str:
        """What of it landed where."""
        text = sum(key.startswith(TEXT + ".") for key in self.changes)
        parts = {"the U-Net": len(self.changes) - text, "the text encoder": text}
        told = ", ".join(f"{count} layers of {part}" for part, count in parts.items() if count)
        return f"LoRA {self.path}, scale {self.scale:g}: {told}"


def file_of(path: Path) -> Path:
    """The file itself where a folder of diffusers is named."""
    return path / IN_FOLDERS if path.is_dir() else path


def read_lora(
    path: Path, scale: float, own: Mapping[str, Tensor], params: Mapping[str, Any], allow: bool = False
) -> LoraFile:
    """Reads a file, and finds the weights that it changes.

    Args:
        path: safetensors or torch.save, or diffusers' folder of it.
        scale: s.
        own: the model's weights, or others of their names and shapes.
        params: of the model's configuration.
        allow: leave out what fits nowhere, and say so.

    Raises:
        InputError: no such file, one without LoRA, or what fits nowhere, by name.
    """
    path = file_of(path)
    if not path.is_file():
        raise InputError(f"‹lora› {path}: no such file")
    layers, strange = _layers_of(read_tensors(path))
    if not layers:
        raise InputError(
            f"‹lora› {path}: holds no LoRA layers (pairs of lora_down and lora_up, or of lora_A and lora_B)"
        )
    places, said = _places(own, params), _said(path)
    changes: dict[str, Change] = {}
    left = dict.fromkeys(strange, "no weight of a LoRA layer")
    for name, layer in layers.items():
        key = places.get(_spelled(name))
        fault = "no such layer in the model" if key is None else _fault(layer, own[key])
        if key is not None and not fault and key in changes:
            fault = "another layer of the file has the same place"
        if fault:
            left[name] = fault
            continue
        assert key is not None and layer.down is not None and layer.up is not None
        rank = len(layer.down)
        alpha = layer.alpha if layer.alpha is not None else _alpha(said, name, rank)
        changes[key] = Change(layer.down, layer.up, scale * alpha / rank)
    if not changes:
        raise InputError(
            f"‹lora› {path}: none of its {len(layers)} layers fits the model, which is Stable Diffusion 1.x or of its "
            f"kind: {_listed(left, 3)}"
        )
    if left and not allow:
        raise InputError(
            f"‹lora› {path}: of its {len(layers)} layers {len(changes)} fit the model; not these: {_listed(left, 8)}; "
            f"go on without them: ‹allow_mismatch› {ALLOWED}"
        )
    return LoraFile(path, scale, changes, left)


def read_loras(options: LoraFileOptions, own: Mapping[str, Tensor], params: Mapping[str, Any]) -> list[LoraFile]:
    """The files that the options name; says of each what landed, and what did not. See ``read_lora``."""
    allow = bool({ALLOWED, "all"} & set(options.allow_mismatch))
    files = [read_lora(path, scale, own, params, allow) for path, scale in options.lora_files]
    for file in files:
        if file.left:
            note(f"‹lora› {file.path}: left out: {_listed(file.left, len(file.left))}")
    return files


def add_loras(model: nn.Module, options: LoraFileOptions, params: Mapping[str, Any]) -> list[str]:
    """Adds the files that the options name to a model's weights.

    Args:
        model: with its weights; changed in place.
        options: files and scales.
        params: of the model's configuration.

    Returns:
        a line about each.

    Raises:
        InputError: see ``read_lora``.
    """
    if not options.lora:
        return []
    own = model.state_dict()
    files = read_loras(options, own, params)
    with torch.no_grad():
        for file in files:
            for key, value in file.changed(own):
                own[key].copy_(value)
    return [file.line() for file in files]


# ---- what a file holds


def _layers_of(state: Mapping[str, Tensor]) -> tuple[dict[str, _Layer], list[str]]:
    """A file's layers by its own names, and the names of what belongs to none."""
    layers: dict[str, _Layer] = {}
    others = []
    for key, value in state.items():
        if match := _WEIGHT.fullmatch(key):
            layer = layers.setdefault(match["layer"], _Layer())
            kind = match["peft"] or match["kohya"] or match["older"]
            setattr(layer, "down" if kind in ("A", "down") else "up", value)
        else:
            others.append(key)
    strange = []
    for key in others:
        name, _, rest = key.partition(".") if key.startswith("lora_") else key.rpartition(".")
        if name not in layers:  # peft's own: <layer>.lora_magnitude_vector.weight
            name = next((layer for layer in layers if key.startswith(layer + ".")), name)
        if name not in layers:
            strange.append(key)
        elif rest == "alpha" and state[key].numel() == 1:
            layers[name].alpha = float(state[key])
        else:
            layers[name].more.append(key.removeprefix(name + "."))
    return layers, strange


def _said(path: Path) -> Mapping[str, Any]:
    """What diffusers writes beside the weights: the options of peft's layers."""
    text = None
    with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata")
    try:
        held = {} if text is None else parse_json(text)
        return held if isinstance(held, dict) else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"‹lora› {path}, lora_adapter_metadata: {one_line(error, 200)}") from error


def _alpha(said: Mapping[str, Any], name: str, rank: int) -> float:
    """A layer's alpha as diffusers' file says it; the rank itself where nothing is said."""
    part = next((part for part in ("unet.", "text_encoder.") if name.startswith(part)), "")

    def of(option: str, default: Any) -> Any:
        return said.get(part + option, said.get(option, default))

    alpha, patterns = of("lora_alpha", rank), of("alpha_pattern", None) or {}
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name.removeprefix(part)):
            alpha = value
            break
    if of("use_rslora", False):  # alpha / sqrt(r) in the place of alpha / r
        alpha *= math.sqrt(rank)
    return float(alpha)


# ---- where it belongs


def _spelled(name: str) -> str:
    """A layer's name in a file -> its spelling without dots: ``unet_down_blocks_0_...``, ``text_text_model_...``."""
    name = name.replace(".processor.", ".")  # diffusers' older files: attn1.processor.to_out_lora.down
    name = f"{name}.0" if name.endswith(".to_out") else name
    for beginning, part in _PARTS.items():
        if name.startswith(beginning):
            return (part + name.removeprefix(beginning)).replace(".", "_")
    return "unet_" + name.replace(".", "_")


def _places(own: Mapping[str, Tensor], params: Mapping[str, Any]) -> dict[str, str]:
    """Layers in the spelling of ``_spelled`` -> names of our weight matrices."""
    params = plain(params)
    with torch.device("meta"):
        network = networks.unet(params["unet_config"], params.get("ssl_stage_config") is not None)
    names = names_of(network.state_dict(), unet_to_published)
    known = [*(("unet_", theirs, f"{UNET}.{ours}") for theirs, ours in names.items())]
    known += [("unet_", ours, f"{UNET}.{ours}") for ours in names.values()]
    text = f"{TEXT}.transformer."
    known += [("text_", key.removeprefix(text), key) for key in own if key.startswith(text)]
    places = {}
    for part, name, key in known:
        layer, _, leaf = name.rpartition(".")
        trained = f"{key.rpartition('.')[0]}.{BASE}weight"  # within a layer that a training here gave LoRA
        found = next((one for one in (key, trained) if one in own), None)
        if leaf == "weight" and found is not None:
            places[part + layer.replace(".", "_")] = found
    return places


def _fault(layer: _Layer, weight: Tensor) -> str:
    """Why a layer cannot be added to a weight matrix; empty where it can."""
    if layer.more:
        return f"more than LoRA: {', '.join(layer.more)}"
    down, up = layer.down, layer.up
    if down is None or up is None:
        return "one of its two matrices is missing"
    if down.ndim < 2 or up.ndim < 2 or not (down.is_floating_point() and up.is_floating_point()):
        return "its matrices are none"
    fits = len(down) > 0 and up[0].numel() == len(down)
    if not fits or len(up) != len(weight) or down[0].numel() != weight[0].numel():
        return f"{size_of(up)} times {size_of(down)} in the file, {size_of(weight)} in the model"
    return ""


def _listed(left: Mapping[str, str], most: int) -> str:
    told = [f"{name} ({fault})" for name, fault in list(left.items())[:most]]
    return one_line(", ".join([*told, *([f"and {len(left) - most} more"] if len(left) > most else [])]), 4000)

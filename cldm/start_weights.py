"""Start weights: Stable Diffusion's go to where they belong, and the U-Net's encoder into both branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cldm.control import BRANCHES
from cldm.fusion import fusion_start, is_fusion_weight
from ldm.checkpoint import read_state_dict
from ldm.checkpoint_names import SCHEDULE_BUFFERS, UNET, module_of
from ldm.modules.lora import is_lora_weight, matched
from ldm.open_clip_names import as_open_clip

COPIED = ("time_embed", "label_emb", "input_blocks", "middle_block")  # the U-Net's encoder


def start_weights(
    model: nn.Module, sources: Sequence[Path], reset_branches: bool = False, use_ema: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Everything a model can start from.

    What the sources hold is taken; a branch that they lack becomes a copy of the U-Net's encoder; what is new adds
    nothing yet, so that the prediction is that of the sources.

    Args:
        model: the model to be filled, with its own random weights.
        sources: checkpoints, see ``read_state_dict``; a later one wins where two have the same.
        reset_branches: copy the encoder even where a source has branches.
        use_ema: take running averages.

    Returns:
        weights by name, and each weight's origin by name.
    """
    own = model.state_dict()
    state, origin = source_weights(own, sources, reset_branches, sources if use_ema else ())
    fill(state, origin, own)
    return state, origin


def source_weights(
    own: Mapping[str, Tensor], sources: Sequence[Path], reset_branches: bool = False, averaged: Sequence[Path] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What the sources hold for a model of the weights ``own``, and where each came from; see ``start_weights``.

    Of the sources that are ``averaged``, too, running averages are taken.
    """
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for source in sources:
        weights = matched(own, as_open_clip(own, read_state_dict(source, source in averaged)))
        if reset_branches:
            weights = {key: value for key, value in weights.items() if key.split(".")[0] not in BRANCHES}
        state |= weights
        origin |= dict.fromkeys(weights, f"from {source}")
    return state, origin


def fill(state: dict[str, Tensor], origin: dict[str, str], own: Mapping[str, Tensor]) -> None:
    """Adds, in place, what the sources lack of TISynth's own parts; see ``start_weights``."""
    if not any(key.startswith(f"{UNET}.") for key in state):
        return  # zeros are there not to disturb a trained U-Net; without one, all starts as the model has drawn it

    def add(key: str, value: Tensor, what: str) -> None:
        state[key], origin[key] = value, what

    for branch in BRANCHES:
        prefix = f"{branch}.input_hint_block."
        hint_end = prefix + str(max((int(key.split(".")[2]) for key in own if key.startswith(prefix)), default=0))
        for key in own:
            inside = key.removeprefix(branch + ".")
            if inside == key or key in state:
                continue
            part = inside.split(".")[0]
            if part in COPIED and f"{UNET}.{inside}" in state:
                add(key, state[f"{UNET}.{inside}"], "copied from the U-Net's encoder")
            elif part in ("zero_convs", "middle_block_out") or key.startswith(hint_end + "."):
                add(key, torch.zeros_like(own[key]), "zero")
            elif part == "input_hint_block":
                add(key, own[key], "new, random")
    silent = {branch: _silent(state, branch) for branch in BRANCHES}
    for key in own:
        if key not in state and is_fusion_weight(key):
            add(key, *fusion_start(key, own[key], silent))
        elif key not in state and is_lora_weight(key):
            add(key, own[key], "new, LoRA that adds nothing yet")


def _silent(state: Mapping[str, Tensor], branch: str) -> bool:
    """Whether a branch's features are all zero: its zero convolutions are."""
    last = (f"{branch}.zero_convs.", f"{branch}.middle_block_out.")
    return not any(bool(value.float().any()) for key, value in state.items() if key.startswith(last))


def origin_table(origin: Mapping[str, str], own: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Module -> origin -> number of tensors, of a model's weights."""
    table: dict[str, dict[str, int]] = {}
    for key in own:
        if key not in SCHEDULE_BUFFERS:
            counts = table.setdefault(module_of(key), {})
            what = origin.get(key, "random")
            counts[what] = counts.get(what, 0) + 1
    return table

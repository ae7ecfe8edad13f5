"""A first stage from a configuration and a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.bands import Bands, bands_of
from common.errors import InputError
from common.schema import KeyPath, parse
from ldm.checkpoint import load_weights, read_state_dict
from ldm.checkpoint_names import FIRST_STAGE
from ldm.first_stage.schema import TARGET, Entry, FirstStageEntry, first_stage_of
from ldm.models.autoencoder import AutoencoderKL
from ldm.targets import instantiate_from_config


class Holder(nn.Module):
    """Holds a first stage under its name in checkpoints."""

    def __init__(self, first_stage_model: nn.Module) -> None:
        super().__init__()
        self.first_stage_model = first_stage_model


def first_stage_weights(path: Path, use_ema: bool = False) -> dict[str, Tensor]:
    """The weights of the first stage in a checkpoint: of it alone, of a whole model, or of its training.

    Raises:
        InputError: see ``read_state_dict``; or there are none.
    """
    state = read_state_dict(path, use_ema)
    own = {name: value for name, value in state.items() if name.startswith(f"{FIRST_STAGE}.")}
    if not own:
        raise InputError(f"{path}: holds no weights of a first stage ({FIRST_STAGE}.*)")
    return own


def stated_bands(values: dict[str, Any]) -> Bands | None:
    """What a configuration, of a model or of a first stage's training, states of images' bands; None for nothing.

    Raises:
        InputError: what cannot be.
    """
    model = values.get("model")
    for section in ((model.get("params") if isinstance(model, dict) else None), values.get("data")):
        if isinstance(section, dict) and section.get("bands") is not None:
            return bands_of(section["bands"])
    return None


def load_first_stage(
    values: dict[str, Any], source: Callable[[KeyPath], str], checkpoint: Path | None, use_ema: bool = False
) -> tuple[Any, int]:
    """A first stage ready to encode and decode.

    Args:
        values: a configuration that names one, see ``first_stage_of``.
        source: file or setting of each key_path.
        checkpoint: its weights; none for one that has none, such as ``SpaceToDepth``.
        use_ema: take the checkpoint's running averages.

    Returns:
        the first stage, in eval mode, and the number of bands that it reads.

    Raises:
        InputError: what the configuration says cannot be, weights are lacking, or do not fit.
    """
    content, where = first_stage_of(values, source)
    entry = parse(content, Entry, where, under=("first_stage_config",))
    if entry.target == TARGET:
        params = parse(content, FirstStageEntry, where, under=("first_stage_config",)).params
        first_stage: nn.Module = AutoencoderKL(**params.model_dump())
    else:
        first_stage = instantiate_from_config(entry.model_dump())
    has_weights = any(True for _ in first_stage.parameters())
    if has_weights != (checkpoint is not None):
        raise InputError(f"‹weights›: {entry.target} {'needs them' if has_weights else 'has none; leave them out'}")
    if checkpoint is not None:
        load_weights(Holder(first_stage), first_stage_weights(checkpoint, use_ema), name=str(checkpoint))
    return first_stage.eval().requires_grad_(False), getattr(first_stage, "bands", 3)

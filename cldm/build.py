"""From a YAML file and a checkpoint to a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cldm.control_ldm import ControlLDM
from common.errors import InputError
from ldm.checkpoint import load_weights, read_state_dict
from ldm.util import instantiate_from_config

log = logging.getLogger(__name__)


def load_config(config: str | Path | DictConfig) -> DictConfig:
    """Reads a YAML file, or passes a config through.

    Raises:
        InputError: the file is missing or no YAML mapping.
    """
    if isinstance(config, DictConfig):
        return config
    try:
        loaded = OmegaConf.load(config)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{config}: cannot read this YAML file ({reason})") from error
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{config}: not a YAML mapping")
    return loaded


def create_model(
    config: str | Path | DictConfig,
    checkpoint: str | Path | None = None,
    allow: Sequence[str] = (),
    use_ema: bool = False,
    **overrides: Any,
) -> ControlLDM:
    """Builds the model that a YAML file describes, and loads its weights.

    Args:
        config: path or config with a ``model`` entry; published files work unchanged.
        checkpoint: .ckpt, .safetensors or diffusers folder; None leaves random weights.
        allow: modules that the checkpoint may lack, or ``all``, see ``ldm.checkpoint.load_weights``.
        use_ema: take the checkpoint's running averages.
        **overrides: model parameters that win over the file's.

    Raises:
        InputError: config or checkpoint do not fit; the message lists what does not.
    """
    loaded = load_config(config)
    if "model" not in loaded:
        raise InputError(f"{config if not isinstance(config, DictConfig) else 'config'}: no entry 'model'")
    state = None if checkpoint is None else read_state_dict(checkpoint, use_ema)  # refused before the model is built
    entry: Any = OmegaConf.to_container(loaded.model, resolve=True)
    model = instantiate_from_config(entry, **overrides)
    if state is not None:
        log.info(load_weights(model, state, allow, name=str(checkpoint)).summary())
    return model.eval()

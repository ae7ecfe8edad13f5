"""Building objects from configuration."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from common.errors import InputError

# Published YAML files name their classes by these paths. Value: today's class, and the arguments the name implied.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"cldm.{module}.{name}": (target, extra)
        for module in ("cldm_ssl_aia_augmentation", "cldm_ssl_aia", "cldm")
        for name, target, extra in (
            ("ControlLDM", "cldm.control_ldm.ControlLDM", {}),
            ("ControlNet", "cldm.control.ControlNet", {"hint_scale": "image"}),
            ("ControlNet_latent", "cldm.control.ControlNet", {"hint_scale": "latent"}),
            ("ControlledUnetModel", "cldm.fusion.ControlledUnetModel", {}),
        )
    },
    "ldm.models.autoencoder.AutoencoderKL": ("ldm.models.autoencoder.AutoencoderKL", {}),
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": ("ldm.modules.unet.UNetModel", {}),
    "ldm.models.diffusion.ddpm.LatentDiffusion": ("ldm.models.diffusion.LatentDiffusion", {}),
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": ("ldm.modules.encoders.FrozenCLIPEmbedder", {}),
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder": ("ldm.modules.encoders.FrozenOpenCLIPEmbedder", {}),
    "main.DataModuleFromConfig": ("ldm.data.datamodule.DataModuleFromConfig", {}),
    "main.ImageLogger": ("cldm.callbacks.ImageLogger", {}),
    **{
        f"ldm.data.{module}.{name}": ("ldm.data.pairs.PairedImages", {"flip_p": flip_p})
        for module in ("GID24_Control_ref", "GID24_Control")
        for name, flip_p in (("GID24Train", 0.5), ("GID24Validation", 0.0))
    },
}


def get_obj_from_str(path: str) -> Any:
    """The object at a dotted path, e.g. ``torch.nn.Identity``.

    Raises:
        InputError: there is no such object.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"target: {path}: no such class ({error})") from error


def instantiate_from_config(config: Mapping[str, Any], **overrides: Any) -> Any:
    """Builds ``config['target'](**config['params'])``; published target names resolve through ``ALIASES``.

    Args:
        config: mapping with ``target`` and, optionally, ``params``.
        **overrides: parameters that win over ``params``.

    Raises:
        InputError: no target, no such class, or parameters that the class does not take.
    """
    if "target" not in config:
        raise InputError(f"config has no field 'target' (fields: {', '.join(map(str, config))})")
    target, implied = ALIASES.get(config["target"], (config["target"], {}))
    params = {**implied, **(config.get("params") or {}), **overrides}
    try:
        return get_obj_from_str(target)(**params)
    except TypeError as error:
        if "__init__()" in str(error):  # a wrong or missing parameter, not a fault inside
            raise InputError(f"{config['target']}: {str(error).split('__init__() ')[-1]}") from error
        raise

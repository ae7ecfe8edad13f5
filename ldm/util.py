"""Building objects from configuration: which classes it may name, and the classes that published names mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from common import house
from common.errors import InputError
from common.schema import one_line

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
    "main.DataModuleFromConfig": ("cldm.data.datamodule.DataModuleFromConfig", {}),
    "main.ImageLogger": ("cldm.training.image_logger.ImageLogger", {}),
    # this project's own until version 1.0
    "cldm.callbacks.ImageLogger": ("cldm.training.image_logger.ImageLogger", {}),
    "ldm.data.datamodule.DataModuleFromConfig": ("cldm.data.datamodule.DataModuleFromConfig", {}),
    "ldm.data.pairs.PairedImages": ("cldm.data.pairs.PairedImages", {}),
    **{
        f"ldm.data.{module}.{name}": ("cldm.data.pairs.PairedImages", {"flip_p": flip_p})
        for module in ("GID24_Control_ref", "GID24_Control")
        for name, flip_p in (("GID24Train", 0.5), ("GID24Validation", 0.0))
    },
}


# What a configuration may name. A file that travels with weights must not choose which code runs.
TARGETS = frozenset(
    (
        "cldm.control_ldm.ControlLDM",
        "cldm.control.ControlNet",
        "cldm.fusion.ControlledUnetModel",
        "cldm.training.image_logger.ImageLogger",
        "cldm.data.datamodule.DataModuleFromConfig",
        "cldm.data.pairs.PairedImages",
        "ldm.models.autoencoder.AutoencoderKL",
        "ldm.models.autoencoder.SpaceToDepth",
        "ldm.models.diffusion.LatentDiffusion",
        "ldm.modules.encoders.FrozenCLIPEmbedder",
        "ldm.modules.encoders.FrozenOpenCLIPEmbedder",
        "ldm.modules.unet.UNetModel",
        "torch.nn.Identity",
    )
)
_trusted: tuple[str, ...] = ()


def trust(packages: Sequence[str]) -> None:
    """From now on, configurations may name what these packages hold, and nothing else beside ``TARGETS``.

    Raises:
        InputError: not names of packages.
    """
    global _trusted
    for name in packages:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise InputError(f"--trust {one_line(name, 80)}: write the name of a package, as for import")
    _trusted = tuple(packages)


def is_trusted(name: str) -> bool:
    """Whether the user has named it, or a package that it is in."""
    return any(name == package or name.startswith((f"{package}.", f"{package}/")) for package in _trusted)


def class_path(target: Any) -> str:
    """The path of the class that a configuration's ``target`` means today.

    Raises:
        InputError: neither ours, nor a published name, nor trusted.
    """
    if not isinstance(target, str):
        raise InputError(f"target: {one_line(repr(target), 60)}: write the path of a class")
    path = ALIASES.get(target, (house.file_name(target),))[0]
    if path not in TARGETS and not is_trusted(path):
        package = target.split(".")[0]
        raise InputError(
            f"target: {one_line(target, 80)}: no such class here, and code that files name is not run; "
            f"if you know what it does, say --trust {one_line(package, 40)}"
        )
    return path


def get_class(target: Any) -> type:
    """The class that a configuration's ``target`` means.

    Raises:
        InputError: see ``class_path``; or there is no such class.
    """
    path = class_path(target)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(house.load(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"target: {path}: no such class ({one_line(error)})") from error
    if not isinstance(found, type):
        raise InputError(f"target: {path}: is no class")
    return found


def instantiate_from_config(config: Mapping[str, Any], **overrides: Any) -> Any:
    """Builds ``config['target'](**config['params'])``; published target names resolve through ``ALIASES``.

    Args:
        config: mapping with ``target`` and, optionally, ``params``.
        **overrides: parameters that win over ``params``.

    Raises:
        InputError: no target, one that may not be named, or parameters that the class does not take.
    """
    if "target" not in config:
        raise InputError(f"config has no field 'target' (fields: {', '.join(map(str, config))})")
    target = config["target"]
    cls = get_class(target)
    implied = ALIASES[target][1] if target in ALIASES else {}
    params = {**implied, **(config.get("params") or {}), **overrides}
    try:
        return cls(**params)
    except TypeError as error:
        if "__init__()" in str(error):  # a wrong or missing parameter, not a fault inside
            raise InputError(f"{target}: {str(error).split('__init__() ')[-1]}") from error
        raise

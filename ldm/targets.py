"""The classes that a configuration may name, and what it builds of them.

A file that travels with weights must not choose which code runs: it may name the classes of this table, and those of
packages that the user trusts. Packages above this one add their own when they are imported (``register``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common import house
from common.errors import InputError
from common.schema import one_line
from common.trust import is_trusted

Alias = tuple[str, dict[str, Any]]  # a class's path today, and the arguments that the published name implied

_targets = {
    "ldm.models.autoencoder.AutoencoderKL",
    "ldm.models.autoencoder.SpaceToDepth",
    "ldm.models.diffusion.LatentDiffusion",
    "ldm.modules.encoders.FrozenCLIPEmbedder",
    "ldm.modules.encoders.FrozenOpenCLIPEmbedder",
    "ldm.modules.unet.UNetModel",
    "torch.nn.Identity",
}
_aliases: dict[str, Alias] = {}


def register(targets: Iterable[str], aliases: Mapping[str, Alias]) -> None:
    """Adds classes that configurations may name, and other names of classes."""
    _targets.update(targets)
    _aliases.update(aliases)


def class_path(target: Any) -> str:
    """The path of the class that a configuration's ``target`` means today.

    Raises:
        InputError: neither ours, nor a published name, nor trusted.
    """
    if not isinstance(target, str):
        raise InputError(f"target: {one_line(repr(target), 60)}: write the path of a class")
    target = house.file_name(target)
    _register_house(target.partition(".")[0])
    path = _aliases.get(target, (target, {}))[0]
    if path not in _targets and not is_trusted(path):
        package = target.split(".")[0]
        raise InputError(
            f"target: {one_line(target, 80)}: no such class here, and code that files name is not run; "
            f"if you know what it does, say ‹trust› {one_line(package, 40)}"
        )
    return path


def _register_house(package: str) -> None:
    """Imports a package of this project, which may register classes; never one that another project has."""
    if package in house.HOUSE:
        house.load(package)


def implied_params(target: str) -> dict[str, Any]:
    """The arguments that a published name implies, beside those that the file gives."""
    return dict(_aliases.get(house.file_name(target), ("", {}))[1])


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
    """Builds ``config['target'](**config['params'])``; published names of classes mean today's.

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
    params = {**implied_params(target), **(config.get("params") or {}), **overrides}
    try:
        return cls(**params)
    except TypeError as error:
        if "__init__()" in str(error):  # a wrong or missing parameter, not a fault inside
            raise InputError(f"{target}: {str(error).split('__init__() ')[-1]}") from error
        raise

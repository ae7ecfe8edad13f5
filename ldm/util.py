"""Building objects from configuration, refusing bad input, and writing files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class InputError(ValueError):
    """Something the user gave is wrong. The message names file, line and field and says what to do.

    Scripts print it in one line and end with exit code 2.
    """


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


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary name beside ``path`` and renames it to ``path`` once the block has ended without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(folder: str | os.PathLike[str], option: str) -> Path:
    """Makes ``folder`` and proves that files can be written to it.

    Raises:
        InputError: it cannot be made or written to; the message names ``option``.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{option} {folder}: cannot write there ({reason}); name another folder") from error
    return folder


def seed_from(*parts: object) -> int:
    """A 63-bit seed that depends on the given parts alone (SHA-256), the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def item_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise, one generator an item, so that an item's noise does not depend on its batch.

    Args:
        seeds: one seed an item (B).
        shape: shape of one item, e.g. (C, h, w).

    Returns:
        float32 tensor (B, *shape) on the CPU.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=g, dtype=torch.float32) for g in generators])

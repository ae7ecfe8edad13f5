"""The one table of published names: what other code's YAML files call the classes of this project."""

from __future__ import annotations

from typing import Any

# Name in a published YAML file -> today's class, and the arguments that the name implied.
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

# This package's classes that a configuration may name; those of latent diffusion are in ``ldm.targets``.
TARGETS = (
    "cldm.control_ldm.ControlLDM",
    "cldm.distillation.student.ConsistencyStudent",
    "cldm.control.ControlNet",
    "cldm.fusion.ControlledUnetModel",
    "cldm.training.image_logger.ImageLogger",
    "cldm.data.datamodule.DataModuleFromConfig",
    "cldm.data.pairs.PairedImages",
)

"""A small Stable Diffusion in diffusers' layout with random weights, and the config of the model that takes them."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from omegaconf import OmegaConf
from transformers import CLIPTextConfig, CLIPTextModel

WIDTHS = (32, 64, 128, 128)

ENCODER = {
    "in_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 4,
    "context_dim": 48,
}
VAE = {"double_z": True, "z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 4, 4]}
CLIP = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "intermediate_size": 96}


def config(encoder=None, clip=None):
    """The small model's config; arguments change parts of it."""
    encoder = {**ENCODER, **(encoder or {})}
    parts = {
        "control_stage_config": ("cldm.control.ControlNet", {**encoder, "hint_channels": 3, "hint_scale": "image"}),
        "ssl_stage_config": ("cldm.control.ControlNet", {**encoder, "hint_channels": 4, "hint_scale": "latent"}),
        "unet_config": ("cldm.fusion.ControlledUnetModel", {**encoder, "out_channels": 4}),
        "first_stage_config": (
            "ldm.models.autoencoder.AutoencoderKL",
            {"embed_dim": 4, "ddconfig": {**VAE, "num_res_blocks": 2, "attn_resolutions": []}},
        ),
        "cond_stage_config": ("ldm.modules.encoders.FrozenCLIPEmbedder", {**CLIP, **(clip or {})}),
    }
    params = {name: {"target": target, "params": values} for name, (target, values) in parts.items()}
    return OmegaConf.create({"model": {"target": "cldm.control_ldm.ControlLDM", "params": params}})


def shake(module):
    """Moves norms and biases away from ones and zeros, so that a mix-up shows."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    return module.eval()


class Peer:
    """The independent implementation, and the folder that it was saved to."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.folder = folder
        self.unet = shake(
            UNet2DConditionModel(
                block_out_channels=WIDTHS, cross_attention_dim=CLIP["hidden_size"], attention_head_dim=4
            )
        )
        self.vae = shake(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=WIDTHS,
                layers_per_block=2,
                latent_channels=4,
            )
        )
        self.text = shake(
            CLIPTextModel(
                CLIPTextConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
            )
        )
        for name, part in (("unet", self.unet), ("vae", self.vae), ("text_encoder", self.text)):
            part.save_pretrained(folder / name)

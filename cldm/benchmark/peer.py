"""The benchmark's peer: diffusers' ControlNet pipeline with two ControlNets, of a given model's geometry."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from torch import Tensor, nn

from cldm.benchmark.bench import SCALE
from cldm.control_ldm import ControlLDM
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.attention import SpatialTransformer


class ControlNetPeer:
    """``StableDiffusionControlNetPipeline`` with random weights, as large as a TISynth model without joint fusion.

    Args:
        model: gives the geometry, the text encoder and the prompts' embeddings.
        prompts: B prompts.
        x: noise (B, C, h, w).
        hint: control image (B, 3, H, W) in [0, 1], for both ControlNets.
        dtype: of weights and activations.
        device: where.
    """

    def __init__(
        self, model: ControlLDM, prompts: list[str], x: Tensor, hint: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        unet = model.model.diffusion_model
        levels = unet.feature_channels[1:]
        widths = [c for i, c in enumerate(levels) if i == 0 or c != levels[i - 1]]
        blocks = sum(len(block) > 1 or not hasattr(block[0], "op") for block in unet.input_blocks[1:])
        depth = len([b for b in unet.input_blocks[1:] if hasattr(b[0], "op")]) + 1
        per_level = blocks // depth
        while len(widths) < depth:  # equal neighbors, as SD's last two levels
            widths.append(widths[-1])
        attends = [
            any(isinstance(m, SpatialTransformer) for m in unet.input_blocks[1 + i * (per_level + 1)])
            for i in range(depth)
        ]
        number, size = unet.heads
        self.network = diffusers.UNet2DConditionModel(
            sample_size=x.shape[-1],
            in_channels=x.shape[1],
            out_channels=x.shape[1],
            block_out_channels=widths,
            layers_per_block=per_level,
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            cross_attention_dim=unet.transformer_options["context_dim"],
            # diffusers calls the number of heads attention_head_dim
            attention_head_dim=number if number != -1 else [w // size for w in widths],
            norm_num_groups=math.gcd(unet.norm_groups, unet.model_channels),
        )
        factor = model.factor
        hints = {8: (16, 32, 96, 256), 4: (16, 32, 96), 2: (16, 32), 1: (16,)}[factor]
        nets = [
            diffusers.ControlNetModel.from_unet(self.network, conditioning_embedding_out_channels=hints)
            for _ in range(2)
        ]
        self.hint_encoders = [net.controlnet_cond_embedding for net in nets]
        self.control = MultiControlNetModel(nets)
        for part in (self.network, self.control):
            part.to(device, dtype).eval().requires_grad_(False)
        self.decodes = isinstance(model.first_stage_model, AutoencoderKL)
        self.model, self.prompts, self.x, self.hint = model, prompts, x, hint[:, :3]
        self.scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=False,
            steps_offset=1,
            clip_sample=False,
        )

    @cached_property
    def _pipeline(self) -> Any:
        vae = diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=_vae_widths(self.model.first_stage_model),
            layers_per_block=2,
        )
        vae.to(self.x.device, self.x.dtype).eval().requires_grad_(False)
        pipe = diffusers.StableDiffusionControlNetPipeline(
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            unet=self.network,
            controlnet=self.control,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _texts(self) -> tuple[Tensor, Tensor]:
        texts = self.model.get_learned_conditioning(self.prompts)
        return texts, self.model.get_learned_conditioning([""] * len(self.prompts))

    def _use(self, hint_encoders: bool) -> None:
        for net, encode in zip(self.control.nets, self.hint_encoders, strict=True):
            net.controlnet_cond_embedding = encode if hint_encoders else nn.Identity()

    @torch.no_grad()
    def step(self, reuse_hints: bool = False) -> Callable[[], Tensor]:
        """One guided step, as the pipeline's loop does it.

        Args:
            reuse_hints: leave out the hints' encoding, which the pipeline repeats at every step: the same work as ours,
                for a comparison by FLOP.
        """
        text, empty = self._texts()
        context = torch.cat([empty, text])
        hints = [torch.cat([self.hint] * 2)] * 2
        if reuse_hints:
            hints = [encode(hint) for encode, hint in zip(self.hint_encoders, hints, strict=True)]
        self.scheduler.set_timesteps(50, device=self.x.device)
        t = self.scheduler.timesteps[25]

        @torch.no_grad()
        def work() -> Tensor:
            self._use(not reuse_hints)
            x = torch.cat([self.x] * 2)
            down, middle = self.control(
                x,
                t,
                encoder_hidden_states=context,
                controlnet_cond=hints,
                conditioning_scale=[1.0, 1.0],
                guess_mode=False,
                return_dict=False,
            )
            eps = self.network(
                x,
                t,
                encoder_hidden_states=context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
            unconditional, conditional = eps.chunk(2)
            eps = unconditional + SCALE * (conditional - unconditional)
            return self.scheduler.step(eps, t, self.x).prev_sample

        return work

    @torch.no_grad()
    def images(self, steps: int) -> None:
        """A batch of images from text to files, by the pipeline itself."""
        self._use(True)
        text, empty = self._texts()
        made = self._pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=empty,
            image=[self.hint, self.hint],
            latents=self.x,
            num_inference_steps=steps,
            guidance_scale=SCALE,
        )
        with tempfile.TemporaryDirectory() as folder:
            for i, picture in enumerate(made.images):
                picture.save(Path(folder) / f"{i}.jpg", quality=95)


def _vae_widths(vae: nn.Module) -> list[int]:
    return [level.block[-1].conv2.out_channels for level in vae.encoder.down]  # type: ignore[union-attr]

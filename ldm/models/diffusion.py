"""Latent diffusion (Rombach et al. 2022): schedule, first stage, text encoder and denoiser in one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.bands import BANDS_KEY, BASIS_KEY, Bands, bands_of, seen_of
from common.errors import InputError
from common.rng import Stream, item_noise, seed_from
from ldm.models.autoencoder import FixedPosterior, SpaceToDepth
from ldm.models.conditions import C, TextConditions
from ldm.models.objective import TIME_STEPS, WEIGHTINGS, mean_of_known, min_snr_weight, time_steps
from ldm.models.schedule import PREDICTION_TYPES, make_betas, schedule_buffers, with_zero_terminal_snr
from ldm.modules.vae import DiagonalGaussian
from ldm.targets import instantiate_from_config

NOISE_SAYS_NOTHING = "noise that is found in noise alone says nothing of the image; take parameterization v or x0"


def known_latents(valid: Tensor, factor: int) -> Tensor:
    """Where images (B, 1, H, W) bool have data -> 1 for latent pixels all of whose pixels do, else 0 (B, 1, h, w)."""
    return -F.max_pool2d(-valid.float(), factor)


class DiffusionWrapper(nn.Module):
    """Holds the denoiser under its published name."""

    def __init__(self, unet_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.diffusion_model = instantiate_from_config(unet_config)


class LatentDiffusion(pl.LightningModule):
    """Latent diffusion with frozen first stage and text encoder.

    Args:
        unet_config: the denoiser.
        first_stage_config: pixel <-> latent conversion.
        cond_stage_config: text encoder.
        timesteps: length T of the noise process.
        linear_start: variance of its first step.
        linear_end: variance of its last step.
        parameterization: what the network predicts: ``eps`` (noise), ``v`` (velocity, Salimans & Ho 2022) or ``x0``
            (the clean latent: a network too small for it errs on the smooth side, not on the noisy one).
        scale_factor: the latent's scale, so that it has about unit variance.
        channels: of the latent.
        first_stage_key: batch field of the image.
        cond_stage_key: batch field of the prompt.
        zero_terminal_snr: the noise process ends in noise alone (Lin et al. 2024, section 3.1), so that an image's
            brightness is not read from what noise leaves; for ``v`` and ``x0``.
        loss_weighting: of time steps in training, ``none`` or ``min_snr``, see ``min_snr_weight``.
        min_snr_gamma: its gamma.
        timestep_sampling: in training, ``uniform`` or ``logit_normal``, see ``time_steps``.
        timestep_mean: of the latter's normal distribution; above 0 is more noise.
        timestep_std: of it.
        bands: what is stated of the images' bands, see ``common.bands.Bands``; None for three of 8 bits.
        **published: fields of published YAML files without effect here (``num_timesteps_cond``, ``log_every_t``,
            ``image_size``, ``cond_stage_trainable``, ``conditioning_key``, ``monitor``, ``scheduler_config``, ...).

    Raises:
        InputError: an unknown field or name, or values that do not go together.
    """

    PUBLISHED = frozenset(
        (
            "num_timesteps_cond",
            "log_every_t",
            "image_size",
            "cond_stage_trainable",
            "conditioning_key",
            "monitor",
            "only_mid_control",
            "sd_locked",
            "use_ema",
            "scheduler_config",
        )
    )

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any],
        timesteps: int = 1000,
        linear_start: float = 0.00085,
        linear_end: float = 0.012,
        parameterization: str = "eps",
        scale_factor: float = 0.18215,
        channels: int = 4,
        first_stage_key: str = "jpg",
        cond_stage_key: str = "txt",
        zero_terminal_snr: bool = False,
        loss_weighting: str = "none",
        min_snr_gamma: float = 5.0,
        timestep_sampling: str = "uniform",
        timestep_mean: float = 0.0,
        timestep_std: float = 1.0,
        bands: Bands | Mapping[str, Any] | None = None,
        **published: Any,
    ) -> None:
        super().__init__()
        unknown = set(published) - self.PUBLISHED
        if unknown:
            raise InputError(f"model: unknown fields {', '.join(sorted(unknown))}")
        if parameterization not in PREDICTION_TYPES:
            raise InputError(f"model: parameterization: {parameterization}: choose eps, v or x0")
        if loss_weighting not in WEIGHTINGS:
            raise InputError(f"model: loss_weighting: {loss_weighting}: choose {', '.join(WEIGHTINGS)}")
        if timestep_sampling not in TIME_STEPS:
            raise InputError(f"model: timestep_sampling: {timestep_sampling}: choose {', '.join(TIME_STEPS)}")
        if zero_terminal_snr and parameterization == "eps":
            raise InputError(f"model: zero_terminal_snr: true: {NOISE_SAYS_NOTHING}")
        self.parameterization, self.zero_terminal_snr = parameterization, zero_terminal_snr
        self.loss_weighting, self.min_snr_gamma = loss_weighting, min_snr_gamma
        self.timestep_sampling, self.timestep_mean, self.timestep_std = timestep_sampling, timestep_mean, timestep_std
        self.scale_factor = scale_factor
        self.channels = channels
        self.first_stage_key, self.cond_stage_key = first_stage_key, cond_stage_key
        betas = make_betas(timesteps, linear_start, linear_end)
        for name, table in schedule_buffers(with_zero_terminal_snr(betas) if zero_terminal_snr else betas).items():
            self.register_buffer(name, table)
        self.betas: Tensor
        self.model = DiffusionWrapper(unet_config)
        self.first_stage_model = instantiate_from_config(first_stage_config)
        read = self.model.diffusion_model.input_blocks[0][0].in_channels
        if not channels == read == self.first_stage_model.latent_channels:
            raise InputError(
                f"model: channels is {channels}, unet_config's in_channels {read}, and the first stage's "
                f"latent has {self.first_stage_model.latent_channels}: must be one number"
            )
        self.bands = bands_of(bands, "model: bands")
        if (stated := 3 if self.bands is None else self.bands.count) != self.image_bands:
            raise InputError(
                f"model: its first stage reads {self.image_bands} bands, "
                + (
                    f"bands states {stated}: they must agree"
                    if self.bands is not None
                    else "but no range of theirs is stated: `tisynth stats` measures it, for model.params.bands"
                )
            )
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        for part in (self.first_stage_model, self.cond_stage_model):
            part.requires_grad_(False)
        self.train(self.training)

    @property
    def factor(self) -> int:
        """Image pixels a latent pixel."""
        return self.first_stage_model.factor

    @property
    def image_bands(self) -> int:
        """Bands of the images that it reads and makes."""
        return getattr(self.first_stage_model, "bands", 3)

    @property
    def seen_bands(self) -> tuple[int, int, int]:
        """Which of them, from 0, pictures for people show."""
        return seen_of(self.image_bands) if self.bands is None else self.bands.seen

    def _apply(self, fn: Any, recurse: bool = True) -> LatentDiffusion:
        """Moves and casts all but the noise schedule, which half precision would blur: it stays in 32 bit."""
        tables = {name: table for name, table in self.named_buffers(recurse=False) if table.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, table in tables.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < table.dtype.itemsize:
                setattr(self, name, table.to(moved.device))
        return self

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Training mode for all but the frozen first stage and text encoder."""
        super().train(mode)
        for part in ("first_stage_model", "cond_stage_model"):
            if hasattr(self, part):
                getattr(self, part).eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is stated of the images' bands, and how the first stage combines them."""
        if self.bands is not None:
            checkpoint[BANDS_KEY] = self.bands.model_dump(exclude_defaults=True)
            if isinstance(self.first_stage_model, SpaceToDepth):
                checkpoint[BASIS_KEY] = self.first_stage_model.colors.tolist()

    # ---- pixels, text <-> what the denoiser sees

    @torch.no_grad()
    def encode_first_stage(self, image: Tensor) -> Any:
        """Image (B, N, H, W) in [-1, 1] -> posterior of the unscaled latent: ``.parameters, .mode(), .sample()``."""
        return self.first_stage_model.encode(image)

    @torch.no_grad()
    def decode_first_stage(self, latent: Tensor) -> Tensor:
        """Scaled latent (B, C, h, w) -> image (B, bands, H, W), about [-1, 1]."""
        return self.decode_with_gradient(latent)

    def decode_with_gradient(self, latent: Tensor) -> Tensor:
        """As ``decode_first_stage``; what is computed of the image has a gradient with respect to the latent."""
        return self.first_stage_model.decode(latent / self.scale_factor)

    def image_latent(self, image: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Scaled latent (B, C, h, w) of an image (B, 3, H, W) in [-1, 1].

        Args:
            image: the image.
            seeds: one an image for a sample of the posterior; None takes its mode.
        """
        return self._latent(self.encode_first_stage(image), seeds)

    def batch_latent(
        self,
        batch: Mapping[str, Any],
        key: str,
        seeds: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Scaled latent (B, C, h, w) of a batch's images.

        Args:
            batch: has ``key``, images (B, 3, H, W) in [-1, 1]; or ``<key>_posterior``, the parameters (B, 2C, h, w) of
                their posteriors (C where they have no spread), which were kept.
            key: of the images.
            seeds: see ``image_latent``.
            dtype: of images and posteriors as they are taken.
        """
        kept = batch.get(f"{key}_posterior")
        if kept is None:
            return self.image_latent(batch[key].to(dtype), seeds)
        kept = kept.to(dtype)
        return self._latent(FixedPosterior(kept) if kept.shape[1] == self.channels else DiagonalGaussian(kept), seeds)

    def _latent(self, posterior: Any, seeds: Sequence[int] | None) -> Tensor:
        mean = posterior.mode()
        if seeds is None:
            return self.scale_factor * mean
        return self.scale_factor * posterior.sample(item_noise(seeds, mean.shape[1:]).to(mean))

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        """Prompts -> text embedding (B, L, D)."""
        encode = getattr(self.cond_stage_model, "encode", self.cond_stage_model)
        return encode(prompts)

    def conditions(self, batch: Mapping[str, Any], seeds: Sequence[int] | None = None) -> TextConditions:
        """A batch's conditions.

        Args:
            batch: fields of a data set's items, stacked.
            seeds: one an image, for what is drawn of a condition; the text draws nothing.
        """
        return TextConditions(text=self.get_learned_conditioning(batch[self.cond_stage_key]))

    def without_text(self, cond: C) -> C:
        """The same conditions with the empty text, which guidance leads away from."""
        return cond.with_text(self.get_learned_conditioning([""] * len(cond.text)))

    # ---- the denoiser

    def prepare(self, cond: TextConditions | Mapping[str, Any]) -> TextConditions:
        """The conditions of the published dictionary; conditions are passed through."""
        if isinstance(cond, TextConditions):
            return cond
        return TextConditions(text=torch.cat(cond["c_crossattn"], 1))

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: TextConditions | Mapping[str, Any]) -> Tensor:
        """The network's prediction.

        Args:
            x_noisy: noisy latent (B, C, h, w).
            t: time steps (B,).
            cond: conditions, or the published dictionary ``{c_crossattn: [text (B, L, D)]}``.

        Returns:
            (B, C, h, w).
        """
        return self.model.diffusion_model(x_noisy, t, self.prepare(cond).context)

    # ---- training

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, equation 4)."""
        signal, sigma = self._coefficients(t)
        return signal * x_start + sigma * noise

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # always in 32 bit: in bfloat16, 1 - abar is 0 at the first steps
        alphas_cumprod = self.alphas_cumprod[t][:, None, None, None]  # type: ignore[index]
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def p_losses(
        self,
        x_start: Tensor,
        cond: TextConditions | Mapping[str, Any],
        t: Tensor,
        noise: Tensor,
        known: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the prediction, one number an image (B,) (Ho et al. 2020, equation 14).

        Args:
            x_start: scaled latent (B, C, h, w).
            cond: conditions of ``apply_model``.
            t: time steps (B,).
            noise: standard normal (B, C, h, w).
            known: 1 where there are data, else 0 (B, 1, h, w), which the mean leaves out; None for data everywhere.
        """
        signal, sigma = self._coefficients(t)
        targets = {"eps": noise, "v": signal * noise - sigma * x_start, "x0": x_start}
        target = targets[self.parameterization]
        prediction = self.apply_model(signal * x_start + sigma * noise, t, cond)
        errors = F.mse_loss(prediction.float(), target.float(), reduction="none")
        return mean_of_known(errors, known)

    def further_draws(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What a subclass's ``p_losses`` takes beside by name, drawn from the images' seeds."""
        return {}

    def batch_losses(self, batch: Mapping[str, Any]) -> Tensor:
        """Losses (B,) of a batch; time step and noise of each image come from the batch's field ``seed`` alone.

        In training mode, of the time steps and with the weights that the configuration says. In evaluation mode of
        uniform ones, without weights: what validation says of two trainings then compares.
        """
        seeds = [int(seed) for seed in batch["seed"]]
        # autocast may give the latent in half precision: noise and target must not be rounded to it
        latents = [seed_from(s, Stream.POSTERIOR) for s in seeds]
        x_start = self.batch_latent(batch, self.first_stage_key, latents).float()
        sampling = self.timestep_sampling if self.training else "uniform"
        draws = [seed_from(s, Stream.TIME_STEP) for s in seeds]
        t = time_steps(draws, len(self.betas), sampling, self.timestep_mean, self.timestep_std).to(x_start.device)
        noise = item_noise([seed_from(s, Stream.NOISE) for s in seeds], x_start.shape[1:]).to(x_start)
        known = None
        if "valid" in batch and not bool(batch["valid"].all()):
            known = known_latents(batch["valid"], self.factor)
        losses = self.p_losses(x_start, self.conditions(batch, seeds), t, noise, known, **self.further_draws(seeds))
        if self.training and self.loss_weighting == "min_snr":
            alphas_cumprod = self.alphas_cumprod[t]  # type: ignore[index]
            losses = losses * min_snr_weight(alphas_cumprod, self.parameterization, self.min_snr_gamma)
        return losses

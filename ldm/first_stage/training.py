"""Training of an ``AutoencoderKL``: one step, its two networks, and their running average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from common.rng import item_noise
from ldm.first_stage.losses import (
    PatchDiscriminator,
    adaptive_weight,
    gradient_loss,
    hinge,
    kl_divergence,
    perceptual_loss,
)
from ldm.first_stage.schema import FirstStageConfig, build
from ldm.modules.ema import EMA
from ldm.training.checkpoints import TrainingDiverged
from ldm.training.dropout import seed_dropout


class FirstStageTraining(pl.LightningModule):
    """A first stage that learns to reconstruct images, with a discriminator that tells it what looks wrong.

    Both networks step at once, by one optimizer: the first stage hears a discriminator whose weights are constants, and
    the discriminator sees reconstructions that are constants, so that neither's gradient reaches the other.

    Args:
        config: of the whole training.
    """

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__()
        self.config, self.loss = config, config.loss
        self.first_stage_model = build(config)
        if config.training.trainable == "decoder":
            self.first_stage_model.requires_grad_(False)
            for part in self.first_stage_model.decoding():
                part.requires_grad_(True)
        bands = config.first_stage_config.params.ddconfig.in_channels
        adversary = self.loss.discriminator
        self.discriminator = PatchDiscriminator(bands, adversary.channels, adversary.layers) if adversary else None
        if self.discriminator is not None and config.data.crop < self.discriminator.smallest:
            raise InputError(
                f"data.crop {config.data.crop}: the discriminator needs {self.discriminator.smallest} pixels or more; "
                "lower loss.discriminator.layers"
            )
        # in a list: not a part of the model, nor of its checkpoints
        weights = self.loss.perceptual_weights
        self._perceptual: list[nn.Module] = [perceptual_loss(Path(weights), bands)] if weights else []

    def setup(self, stage: str) -> None:
        """Starts the running average from the weights that training starts from."""
        if stage == "fit" and not hasattr(self, "model_ema"):
            self.model_ema = EMA(self._averaged(), self.config.training.ema_decay)

    def _averaged(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"first_stage_model.{name}", weight) for name, weight in self.first_stage_model.named_parameters()]

    def reconstruct(self, image: Tensor) -> Tensor:
        """Images (B, bands, H, W) in [-1, 1] through the averaged weights and the latent's mean; alike."""
        with self.model_ema.swapped():
            return self.first_stage_model.decode(self.first_stage_model.encode(image).mode()).float()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            TrainingDiverged: a term of it is no finite number; the weights are those of the step before.
        """
        image, known = batch["image"], None
        seed_dropout(self.first_stage_model, batch["seed"].tolist())
        posterior = self.first_stage_model.encode(image)
        noise = item_noise(batch["seed"].tolist(), posterior.mean.shape[1:]).to(image.device)
        made = self.first_stage_model.decode(posterior.sample(noise)).float()
        if not bool(batch["valid"].all()):  # what has no data counts as reconstructed, to all terms
            made = torch.where(batch["valid"], made, image)
            known = F.max_pool2d(batch["valid"].float(), self.first_stage_model.factor)
        terms = self.reconstruction_terms(made, image)
        total = torch.stack(list(terms.values())).sum()
        if self.config.training.trainable == "all":
            terms["kl"] = self.loss.kl * kl_divergence(posterior, image[0].numel(), known)
        adversary = self.loss.discriminator
        if self.discriminator is not None and adversary is not None and self.global_step >= adversary.start:
            adversarial = -self.discriminator.frozen(made).float().mean()
            last_layer = self.first_stage_model.decoder.conv_out.weight
            terms["adversarial"] = adversary.weight * adaptive_weight(total, adversarial, last_layer) * adversarial
            real, fake = self.discriminator(image).float(), self.discriminator(made.detach()).float()
            terms["discriminator"] = hinge(real, fake)
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=name in ("l1", "discriminator"), batch_size=len(image))
        if wrong := [f"{name} is {value.item()}" for name, value in terms.items() if not torch.isfinite(value)]:
            raise TrainingDiverged(
                f"the loss's term {', '.join(wrong)} at step {self.global_step}, images {', '.join(batch['name'])}: "
                "resume from the last checkpoint with a lower training.learning_rate, a lower "
                "loss.discriminator.weight, or training.precision=32-true"
            )
        return torch.stack(list(terms.values())).sum()

    def reconstruction_terms(self, made: Tensor, image: Tensor) -> dict[str, Tensor]:
        """What a reconstruction (B, bands, H, W) lacks of its image (B, bands, H, W): weighted scalars by name."""
        terms = {"l1": self.loss.l1 * (made - image).abs().mean()}
        if self.loss.gradient:
            terms["gradient"] = self.loss.gradient * gradient_loss(made, image, self.loss.gradient_scales)
        for network in self._perceptual:
            terms["perceptual"] = self.loss.perceptual * network.to(made.device)(made, image).mean()
        return terms

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the optimizer, then of the running average (before any checkpoint of this step is written)."""
        super().optimizer_step(*args, **kwargs)
        self.model_ema.update()

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Each network's gradients on their own: one does not make the other's small."""
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.config.training.gradient_clip)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Mean absolute error, and PSNR in dB of each image, of the averaged weights."""
        image = batch["image"]
        difference = ((self.reconstruct(image).clamp(-1, 1) - image) * batch["valid"]).flatten(1)
        psnr = 10 * torch.log10(4 / difference.square().mean(1).clamp(min=1e-12))  # values span 2
        self.log("val/l1", difference.abs().mean(), batch_size=len(image))
        self.log("val/psnr", psnr.mean(), prog_bar=True, batch_size=len(image))

    def configure_optimizers(self) -> Any:
        """Adam over both networks, with warm-up and decay as asked."""
        training = self.config.training
        groups = [{"params": [weight for weight in self.first_stage_model.parameters() if weight.requires_grad]}]
        if self.discriminator is not None:
            groups.append({"params": list(self.discriminator.parameters())})
        optimizer = torch.optim.Adam(groups, training.learning_rate, betas=(training.betas[0], training.betas[1]))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the learning rate at a step."""
        training = self.config.training
        warm = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
        if not training.decay:
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / training.max_steps)))

    def on_train_start(self) -> None:
        """What the configuration says of the optimizer holds, not what a resumed checkpoint brings back."""
        training = self.config.training
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [training.learning_rate] * len(scheduler.base_lrs)
            rate = training.learning_rate * self._rate(scheduler.last_epoch)
            for group in scheduler.optimizer.param_groups:
                group.update({"betas": tuple(training.betas), "initial_lr": training.learning_rate, "lr": rate})
            scheduler._last_lr = [rate] * len(scheduler.base_lrs)

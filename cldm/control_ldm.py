"""TISynth's model: latent diffusion steered by a mask, a reference image and a text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torchmetrics import MeanMetric

from cldm.conditions import Conditions
from cldm.control import BRANCHES, ControlNet
from cldm.data.hints import ignored_value
from cldm.fusion import BranchFeature, is_fusion_weight
from cldm.lora import adapt, trains_with_lora
from common.errors import InputError
from common.rng import Stream, seed_from
from ldm.compiling import compiled
from ldm.models.conditions import TextConditions
from ldm.models.diffusion import LatentDiffusion
from ldm.modules.ema import EMA
from ldm.modules.lora import ATTENTION
from ldm.targets import instantiate_from_config
from ldm.training.checkpoints import TrainingDiverged
from ldm.training.dropout import seed_dropout
from ldm.training.optimizers import make_optimizer, optimizer_options

TRAINABLE = ("fusion", "published", "all")
BranchFeatures = Sequence[Tensor | BranchFeature] | None


def _acting(maps: list[Tensor] | None, strength: float, keep: bool) -> BranchFeatures:
    """A branch's maps with their strength; as they are where neither strength nor keeping asks for more."""
    if maps is None or (strength == 1 and not keep):
        return maps
    return [BranchFeature(map, strength, keep) for map in maps]


class ControlLDM(LatentDiffusion):
    """Latent diffusion with two control branches and joint fusion; with the mask branch alone, a plain ControlNet.

    Args:
        control_stage_config: the mask branch.
        ssl_stage_config: the reference branch; None for a plain ControlNet (Zhang et al. 2023), whose U-Net adds the
            mask branch's features to its middle and its skip connections.
        control_key: batch field of the mask's encoding.
        ssl_control_key: batch field of the reference image.
        trainable: ``fusion`` (both branches and the new attention, as the paper says), ``published`` (what the
            published code trains of it: not the mask branch, nor the middle block's fusion) or ``all`` (the whole
            U-Net too, for models that do not start from Stable Diffusion).
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        optimizer: which AdamW, see ``ldm.training.optimizers``.
        warmup_steps: steps of linear warm-up.
        decay_steps: step at which a cosine decay to zero ends; None keeps the rate.
        use_ema: average the weights that train.
        ema_decay: of that average, 0 to 1.
        hint_encoding: how masks become hints, see ``cldm.data.hints.HintEncoder``; published weights need ``index``.
        classes: class table that the encoding uses: a built-in name, or the path of a classes.json.
        aug_pipe_config: the reference in training, see ``cldm.data.reference.ReferenceAugmentation``.
        sd_locked: False trains the U-Net's decoder (output blocks and ``out``), too, as ControlNet's option does.
        only_mid_control: a plain ControlNet's features join at the middle block alone.
        lora: rank of LoRA layers, which train in the place of what they adapt (``cldm.lora``); None for none.
        lora_targets: layers that get them, by the ends of their names; the attention's projections by default.
        **latent_diffusion: see ``LatentDiffusion``.
    """

    def __init__(
        self,
        control_stage_config: Mapping[str, Any],
        ssl_stage_config: Mapping[str, Any] | None = None,
        control_key: str = "hint",
        ssl_control_key: str = "ssl",
        trainable: str = "fusion",
        learning_rate: float = 1e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        decay_steps: int | None = None,
        use_ema: bool = False,
        ema_decay: float = 0.9999,
        hint_encoding: str = "index",
        classes: str | None = None,
        aug_pipe_config: Mapping[str, Any] | None = None,
        sd_locked: bool | None = None,
        only_mid_control: bool | None = None,
        lora: int | None = None,
        lora_targets: Sequence[str] = ATTENTION,
        optimizer: str = "adamw_fused",
        *,
        unet_config: Mapping[str, Any],
        **latent_diffusion: Any,
    ) -> None:
        self.fuses = ssl_stage_config is not None
        if not self.fuses:
            plain = {"joint_fusion": False, "add_mask_features": True, "only_mid_control": bool(only_mid_control)}
            unet_config = {**unet_config, "params": {**(unet_config.get("params") or {}), **plain}}
        elif only_mid_control:
            raise InputError(
                "model: only_mid_control: true: TISynth's output blocks read the features by attention, "
                "and cannot do without; it is for plain ControlNets (no ssl_stage_config)"
            )
        super().__init__(unet_config=unet_config, **latent_diffusion)
        self.control_model: ControlNet = instantiate_from_config(control_stage_config)
        self.ssl_stage_model: ControlNet | None = None
        if ssl_stage_config is not None:
            self.ssl_stage_model = instantiate_from_config(ssl_stage_config)
        self.control_key, self.ssl_control_key = control_key, ssl_control_key
        self.learning_rate, self.weight_decay, self.optimizer = learning_rate, weight_decay, optimizer
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps
        self.ema_decay = ema_decay if use_ema else None
        # A loss that is not a number makes the mean infinite, so that no checkpoint of that step is kept as the best.
        # (The strategy "disable" would also show it, but torchmetrics then ignores the items' weights.)
        self.validation_loss = MeanMetric(nan_strategy=torch.inf)
        self.hint_encoding, self.classes, self.augmentation = hint_encoding, classes, dict(aug_pipe_config or {})
        if not 0 <= ema_decay < 1:
            raise InputError(f"model: ema_decay: {ema_decay}: must be 0 or more, and below 1")
        if trainable not in TRAINABLE:
            raise InputError(f"model: trainable: {trainable}: choose {', '.join(TRAINABLE)}")
        if trainable == "published" and not self.fuses:
            raise InputError(
                "model: trainable: published: is about TISynth's two branches; take fusion, which trains "
                "the mask branch of a plain ControlNet"
            )
        self.trainable, self.lora = trainable, lora
        if lora is not None:
            adapt(self, lora, lora_targets, trainable, sd_locked)
        self._choose_what_trains(bool(sd_locked) if sd_locked is not None else True)

    def _choose_what_trains(self, sd_locked: bool) -> None:
        unet = self.model.diffusion_model
        self.model.requires_grad_(self.trainable == "all")
        for name, parameter in self.new_parameters():
            parameter.requires_grad_(self.trainable != "published" or self._published_code_trains(name))
        if not sd_locked:
            unet.output_blocks.requires_grad_(True)
            unet.out.requires_grad_(True)
        if self.lora is not None:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(trains_with_lora(name))
        # A zero convolution learns from what reads its features. An output block without attention reads none; where
        # they are not added to its skip connection either, these weights never get a gradient, which DDP refuses.
        read = unet.fused_features()
        for branch in self.branches:
            added = unet.adds_to_skips and branch is self.control_model
            for i, conv in enumerate(branch.zero_convs):
                if not (added or i in read):
                    conv.requires_grad_(False)

    def _published_code_trains(self, name: str) -> bool:
        """Whether the published code's optimizer moves a parameter of TISynth's own.

        Its list of parameters is overwritten after the mask branch was put in; the middle block's fusion runs under
        ``no_grad``, and with it goes all of the reference branch that only the middle block reads.
        """
        module, _, inside = name.partition(".")
        if module != "ssl_stage_model":
            return inside.startswith("diffusion_model.output_blocks.")
        part, _, rest = inside.partition(".")
        if part in ("input_blocks", "zero_convs"):
            read = self.model.diffusion_model.fused_features()[:-1]
            return bool(read) and int(rest.partition(".")[0]) <= max(read)
        return part not in ("middle_block", "middle_block_out")

    @property
    def branches(self) -> list[ControlNet]:
        """The mask branch, and the reference branch if there is one."""
        return [self.control_model, *([] if self.ssl_stage_model is None else [self.ssl_stage_model])]

    @property
    def ignored_hint(self) -> float:
        """What stands for no mask: the value of all channels where pixels are to be ignored."""
        return ignored_value(self.hint_encoding)

    @property
    def multiple(self) -> int:
        """Height and width of images must be multiples of this many pixels."""
        return self.factor * self.model.diffusion_model.max_factor

    @property
    def networks(self) -> list[nn.Module]:
        """What runs at each denoising step: the branches and the U-Net."""
        return [*self.branches, self.model.diffusion_model]

    def accelerate(self, compile_networks: bool | str = False, shared_gradients: bool = False) -> None:
        """Changes how the networks run, not what they compute: channels-last memory format and, if wanted, compiled.

        Args:
            compile_networks: see ``ldm.compiling``; True compiles the blocks.
            shared_gradients: several processes train the model.

        Raises:
            InputError: CUDA graphs without a GPU.
        """
        for module in self.modules():
            # The weights of a 1 x 1 convolution lie in memory alike in both formats, but by their strides a kernel is
            # chosen. They would differ from those of their gradients, about which DDP complains at every step.
            if isinstance(module, nn.Conv2d) and not (shared_gradients and module.kernel_size == (1, 1)):
                module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
        if isinstance(compile_networks, bool):
            compile_networks = "blocks" if compile_networks else "no"
        compiled(self.networks, compile_networks)

    def new_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What TISynth adds to Stable Diffusion: both branches, and the attention to their features."""
        for name, parameter in self.named_parameters():
            if name.split(".")[0] in BRANCHES or is_fusion_weight(name):
                yield name, parameter

    # ---- conditions

    def conditions(self, batch: Mapping[str, Any], seeds: Sequence[int] | None = None) -> Conditions:
        """A batch's conditions: what training, its pictures, synthesis and the benchmark all make of an item.

        Training draws the reference's latent from the first stage's posterior, a little noise that the branch learns to
        bear. Pictures, of a training as of a synthesis, take the posterior's mode: what the reference shows, the same
        whenever and with whatever else it is encoded. (The published code draws there, too: an option of synthesis.)

        Args:
            batch: hint (B, C', H, W), text (B), and reference image (B, 3, H, W) in [-1, 1]; ``reference_given``
                (B,), if it is there, is 0 where training hides the reference: a latent of zeros stands for none.
            seeds: one an image, for a sample of the reference's posterior; None takes its mode.
        """
        dtype = next(self.control_model.parameters()).dtype
        reference = None
        if self.ssl_stage_model is not None:
            draws = None if seeds is None else [seed_from(int(seed), Stream.REFERENCE_LATENT) for seed in seeds]
            reference = self.batch_latent(batch, self.ssl_control_key, draws, dtype)
            if "reference_given" in batch:
                reference = reference * batch["reference_given"].to(reference)[:, None, None, None]
        text = super().conditions(batch).text
        return Conditions(mask=batch[self.control_key].to(dtype), reference=reference, text=text)

    def prepare(self, cond: TextConditions | Mapping[str, Any]) -> Conditions:
        """The conditions of the published dictionary; conditions are passed through."""
        if isinstance(cond, TextConditions):
            assert isinstance(cond, Conditions)
            return cond
        return Conditions.from_published(cond)

    # ---- the network

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: TextConditions | Mapping[str, Any]) -> Tensor:
        """The network's prediction.

        Args:
            x_noisy: noisy latent (B, C, h, w).
            t: time steps (B,).
            cond: conditions, or the published dictionary
                ``{c_concat: [hint (B, C', H, W)], c_crossattn: [text (B, L, D)], c_ssl: [latent (B, C, h, w)]}``; a
                plain ControlNet reads no ``c_ssl``.

        Returns:
            (B, C, h, w).
        """
        cond = self.prepare(cond)
        features = self.branch_features(x_noisy, t, cond)
        return self.model.diffusion_model(x_noisy, t, cond.context, *features)

    def branch_features(
        self, x_noisy: Tensor, t: Tensor, cond: Conditions, keep: bool = False
    ) -> tuple[BranchFeatures, BranchFeatures]:
        """What the U-Net reads of the mask branch, and of the reference branch; arguments as for ``apply_model``.

        Args:
            x_noisy: noisy latent.
            t: time steps.
            cond: conditions.
            keep: the attentions to them keep their keys and values, for further steps.

        Returns:
            of each branch its maps, finest first; None of one that is not there, or whose strength is 0.
        """
        text, masks, references = cond.context, self.control_model, self.ssl_stage_model
        mask = reference = None
        if cond.mask_strength:
            mask = masks(x_noisy, cond.mask, t, text, cond.mask_features(masks))
        if references is not None and cond.reference_strength:
            reference = references(x_noisy, cond.reference, t, text, cond.reference_features(references))
            if self.trainable == "published":  # the published code runs the middle block's fusion without gradients
                reference[-1] = reference[-1].detach()
        return _acting(mask, cond.mask_strength, keep), _acting(reference, cond.reference_strength, keep)

    # ---- training

    def setup(self, stage: str) -> None:
        """Starts the running average from the weights that training starts from."""
        if stage == "fit" and self.ema_decay is not None and not hasattr(self, "model_ema"):
            self.model_ema = EMA([(n, p) for n, p in self.named_parameters() if p.requires_grad], self.ema_decay)

    @contextlib.contextmanager
    def ema_scope(self) -> Iterator[None]:
        """Within the block, the weights are their running averages, if there are any."""
        with self.model_ema.swapped() if hasattr(self, "model_ema") else contextlib.nullcontext():
            yield

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean loss of a batch.

        Raises:
            TrainingDiverged: the loss is no finite number; the weights are those of the step before.
        """
        seed_dropout(self, batch["seed"])
        loss = self.batch_losses(batch).mean()
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss.item()} at step {self.global_step}, items {', '.join(batch['name'])}: resume from "
                "the last checkpoint with a lower base_learning_rate, a gradient_clip_val, or another precision"
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["seed"]))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the optimizer, then of the running average (before any checkpoint of this step is written)."""
        super().optimizer_step(*args, **kwargs)
        if hasattr(self, "model_ema"):
            self.model_ema.update()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Mean loss at time steps and noise that are the same at every epoch, however many devices share the items."""
        with self.ema_scope():
            losses = self.batch_losses(batch)
        self.validation_loss.update(losses, batch["weight"])
        self.log("val/loss", self.validation_loss, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW over what trains, warm-up and cosine decay as asked."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = make_optimizer(self.optimizer, parameters, *self._optimizer_options())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer_options(self) -> tuple[dict[str, Any], bool]:
        fuses = self._trainer is None or self.trainer.precision != "16-mixed"
        return {"lr": self.learning_rate, "weight_decay": self.weight_decay}, fuses

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does it, and in bf16-mixed, too: there Lightning refuses a fused optimizer, which might unscale.

        In bfloat16 nothing is scaled.
        """
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None and gradient_clip_val:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _rate(self, step: int) -> float:
        """Share of the learning rate at a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay_steps is None:
            return warm
        done = min(1.0, step / self.decay_steps)
        return warm * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item())

    def on_train_start(self) -> None:
        """What the configuration says of the optimizer holds, not what a resumed checkpoint brings back."""
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [self.learning_rate] * len(scheduler.base_lrs)
            rate = self.learning_rate * self._rate(scheduler.last_epoch)
            options = optimizer_options(self.optimizer, *self._optimizer_options())
            for group in scheduler.optimizer.param_groups:
                group.update({**options, "initial_lr": self.learning_rate, "lr": rate})
            if options.get("fused"):  # its kernel wants the steps beside the weights, where others keep them on the CPU
                for parameter, state in scheduler.optimizer.state.items():
                    state["step"] = state["step"].to(parameter.device, torch.float32)
            scheduler._last_lr = [rate] * len(scheduler.base_lrs)

"""How much memory a training or a synthesis takes, counted without a GPU and without the model's weights.

The work itself runs, a training step or a guided denoising step and the decoding, on PyTorch's fake tensors: they have
shape, type and lifetime, and no numbers. Counted is every tensor from when it is made until nothing holds it any more;
what the most of them take together at one moment is the peak. Attention is fused, as on a GPU. Not counted: the CUDA
context (about 0.5 GiB), cuDNN's workspaces, and gaps in the allocator's memory.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from cldm.build import load_config, outline
from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from common.configuration import plain
from ldm.models.guidance import ClassifierFreeGuidance

GIB = 2**30
NETWORKS = ("control_stage_config", "ssl_stage_config", "unet_config")
TOKENS = 77  # of a text


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors that are made while it is on: ``now``, and at most so far, ``peak``, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and counts what it returns."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:  # a view of something counted
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leaves tensors out that are there already, and all their views."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of a training or a synthesis. At the peak, activations and gradients are not all there at once."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    together: int


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def with_params(config: DictConfig, **params: Any) -> DictConfig:
    """The configuration with other parameters of the model."""
    config = DictConfig(plain(config))
    config.model.params.update(params)
    return load_config(config)


def with_training(config: DictConfig, checkpointing: bool, lora: int | None) -> DictConfig:
    """The configuration of a training with or without checkpointing and LoRA; see ``count_training``."""
    params: dict[str, Any] = {"lora": lora, **({"trainable": "fusion"} if lora else {})}
    for network in NETWORKS:
        if entry := config.model.params.get(network):
            params[network] = {**entry, "params": {**entry.params, "use_checkpoint": checkpointing}}
    return with_params(config, **params)


def _fake_model(config: DictConfig, mode: FakeTensorMode, dtype: torch.dtype) -> ControlLDM:
    """The model on fake tensors, as if they lay on a CPU."""
    model = outline(config).to(dtype)
    with mode:
        return model.to_empty(device="cpu")


def given_batch(model: ControlLDM, batch_size: int, height: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a training step or a synthesis is given: tensors of the right shapes, whatever is in them."""
    latent = (batch_size, model.channels, height // model.factor, width // model.factor)
    return {
        "image": torch.empty(batch_size, 3, height, width, dtype=dtype),
        "hint": torch.empty(batch_size, model.control_model.hint_channels, height, width, dtype=dtype),
        "text": torch.empty(
            batch_size, TOKENS, model.model.diffusion_model.transformer_options["context_dim"], dtype=dtype
        ),
        "noise": torch.empty(latent, dtype=dtype),
        "t": torch.zeros(batch_size, dtype=torch.long),
    }


def training_loss(model: ControlLDM, given: dict[str, Tensor]) -> Tensor:
    """The mean loss of a batch; images are encoded within, as in a training."""
    x_start = model.image_latent(given["image"])
    reference = None if model.ssl_stage_model is None else model.image_latent(given["image"])
    cond = Conditions(mask=given["hint"], reference=reference, text=given["text"])
    return model.p_losses(x_start, cond, given["t"], given["noise"]).mean()


def guided_image(model: ControlLDM, given: dict[str, Tensor]) -> None:
    """A guided step, both texts in one batch, and the decoding."""
    reference = None if model.ssl_stage_model is None else model.image_latent(given["image"])
    cond = Conditions(mask=given["hint"], reference=reference, text=given["text"])
    guidance = ClassifierFreeGuidance(model, cond, cond.with_text(given["text"].clone()))
    model.decode_first_stage(guidance(given["noise"], given["t"]))


def _norms_in_32_bit(model: nn.Module) -> None:
    """Normalizations as autocast runs them on a GPU; the CPU's, which fake tensors take, leaves them in 16 bit."""

    def whole(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.float() for tensor in given)

    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.register_forward_pre_hook(whole)


def count_training(
    config: DictConfig, size: tuple[int, int], batch_size: int, half: bool, checkpointing: bool, lora: int | None
) -> Memory:
    """Memory of a training step with AdamW, on one device.

    Args:
        config: with the model's entry; its weights, gradients and optimizer states are in 32 bit.
        size: height and width of the images in pixels.
        batch_size: images a step.
        half: activations in 16 bit by autocast (bf16-mixed, 16-mixed); else in 32.
        checkpointing: the transformers' activations are computed anew in the backward pass.
        lora: rank; None trains what ``trainable`` of the configuration says.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = _fake_model(with_training(config, checkpointing, lora), mode, torch.float32)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if half:
        _norms_in_32_bit(model)
    live = LiveBytes()
    live.ignore((*model.parameters(), *model.buffers()))
    with mode, live:
        given = given_batch(model, batch_size, *size, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else contextlib.nullcontext():
            loss = training_loss(model, given)
        activations = live.peak
        loss.backward()
    weights, optimizer = _bytes((*model.parameters(), *model.buffers())), 2 * _bytes(trained)
    return Memory(weights, optimizer, _bytes(trained), activations, weights + optimizer + live.peak)


def count_synthesis(config: DictConfig, size: tuple[int, int], batch_size: int, half: bool) -> Memory:
    """Memory of a synthesis with classifier-free guidance, both texts in one batch.

    Args:
        config: with the model's entry.
        size: height and width of the images in pixels.
        batch_size: images at once.
        half: weights and activations in 16 bit; else in 32.
    """
    mode, dtype = FakeTensorMode(allow_non_fake_inputs=True), torch.float16 if half else torch.float32
    model = _fake_model(with_params(config), mode, dtype)
    model.eval()
    live = LiveBytes()
    live.ignore((*model.parameters(), *model.buffers()))
    with torch.no_grad(), mode, live:
        guided_image(model, given_batch(model, batch_size, *size, dtype))
    weights = _bytes((*model.parameters(), *model.buffers()))
    return Memory(weights, 0, 0, live.peak, weights + live.peak)

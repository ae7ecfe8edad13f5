"""Fine-tuning with little memory: LoRA on the attention of trained networks, and what is new beside it in full."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cldm.control import BRANCHES
from cldm.fusion import is_fusion_weight
from common.errors import InputError
from ldm.modules.lora import add_lora, is_lora_weight

# Of a branch, what its copy of the U-Net's encoder has not: the hint's convolutions and the zero convolutions.
OF_A_BRANCH = ("input_hint_block", "zero_convs", "middle_block_out")


def adapt(model: nn.Module, rank: int, targets: Sequence[str], trainable: str, sd_locked: bool | None) -> None:
    """Adds LoRA to the U-Net and to both branches, whose other weights are frozen; see ``trains_with_lora``.

    Args:
        model: a ``ControlLDM``, changed in place.
        rank: see ``add_lora``.
        targets: see ``add_lora``. The new attention of the fusion gets none, since it trains in full.
        trainable: of the model; LoRA goes with ``fusion``.
        sd_locked: of the model; False would train the U-Net's decoder in full.

    Raises:
        InputError: settings that do not go together, or see ``add_lora``.
    """
    if trainable != "fusion" or sd_locked is False:
        other = "sd_locked: false" if trainable == "fusion" else f"trainable: {trainable}"
        instead = "sd_locked=true" if trainable == "fusion" else "trainable=fusion"
        raise InputError(
            f"lora: {rank}: with {other}; LoRA says itself what trains: set model.params.{instead}, or leave LoRA out"
        )
    add_lora(model, rank, targets, but=is_fusion_weight)


def trains_with_lora(name: str) -> bool:
    """Whether a parameter trains in a model with LoRA: LoRA's own, and what Stable Diffusion has no weights for.

    A low-rank change of a trained layer is enough to adapt it; a layer that starts random (the hint's convolutions, the
    fusion's attention) or at zero (the zero convolutions, without which a branch stays silent) has nothing to change.
    """
    module, _, inside = name.partition(".")
    new = module in BRANCHES and inside.split(".")[0] in OF_A_BRANCH
    return new or is_fusion_weight(name) or is_lora_weight(name)

"""Low-rank adaptation of trained layers (LoRA, Hu et al. 2022): y = W x + B A x, W frozen. The layers are peft's.

B A counts as it is (Hu et al.'s alpha is the rank, as in diffusers' trainings): a layer's weights are W + B A, whatever
its configuration says, and a checkpoint can be merged without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from common.errors import InputError
from common.schema import one_line

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # the projections of an attention
# peft's names within a layer, and with them those in checkpoints: W (and b), A (rank, in), B (out, rank)
BASE, DOWN, UP = "base_layer.", "lora_A.default.weight", "lora_B.default.weight"
_WITHIN = "transformer_blocks."


def is_lora_weight(key: str) -> bool:
    """Whether a weight is one of the two that LoRA adds to a layer."""
    return key.endswith(("." + DOWN, "." + UP))


def add_lora(
    model: nn.Module, rank: int, targets: Sequence[str] = ATTENTION, but: Callable[[str], bool] = lambda name: False
) -> None:
    """Adds LoRA to linear layers within transformer blocks. A is random and B zero: the prediction does not change yet.

    Elsewhere are none but of the time step's embedding; a transformer's own ``proj_in`` and ``proj_out`` are read as
    matrices, past what would be added.

    Args:
        model: changed in place; afterwards, nothing in it trains but what was added.
        rank: of B A, 1 to the smaller side of the smallest layer.
        targets: names of layers, or ends of their names: ``to_q``, ``attn2.to_k``.
        but: layers by name that get none.

    Raises:
        InputError: a target that names no layer, or a rank beyond a layer's.
    """
    linear = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and _WITHIN in name and not but(name + ".")
    }
    ends = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    for target, found in ends.items():
        if not found:
            known = dict.fromkeys(".".join(name.split(_WITHIN)[1].split(".")[2:]) for name in linear)
            raise InputError(f"lora_targets: {one_line(target, 60)}: names no layer; there are {', '.join(known)}")
    chosen = [name for name in linear if any(name in found for found in ends.values())]
    smallest = min(chosen, key=lambda name: min(linear[name].weight.shape))
    if rank > (most := min(linear[smallest].weight.shape)):
        raise InputError(f"lora: {rank}: must be at most {most}, the rank of {smallest}")
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import, for those who want it

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen), model)


def matched(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights as a model has them: merged where it has no LoRA, split where the checkpoint has none.

    Args:
        own: the model's weights, or any others of their names.
        state: the checkpoint's.

    Returns:
        weights by the model's names; A and B of a layer that the checkpoint has without LoRA are not among them.
    """
    state = dict(state)
    for down in [key for key in state if key.endswith("." + DOWN) and key not in own]:
        layer = down.removesuffix(DOWN)
        names = [layer + BASE + "weight", layer + UP, down]
        w, b, a = (state.get(name) for name in names)
        if w is None or b is None or a is None or not (w.ndim == a.ndim == b.ndim == 2 and w.is_floating_point()):
            continue  # no LoRA as it should be: the report of what does not fit says so
        if b.shape[1] != a.shape[0] or (b.shape[0], a.shape[1]) != w.shape:
            continue
        state[layer + "weight"] = (w.float() + b.float() @ a.float()).to(w.dtype)
        for name in names:
            del state[name]
        if layer + BASE + "bias" in state:
            state[layer + "bias"] = state.pop(layer + BASE + "bias")
    for key in (key for key in own if f".{BASE}" in key and key not in state):
        plain = key.replace(f".{BASE}", ".")
        if plain in state:
            state[key] = state.pop(plain)
    return state

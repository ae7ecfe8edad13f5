"""A smaller trained model as a start for a larger one: of the same width and depth, for other classes or channels.

Such models differ in the convolutions that read masks, latents and images, or write latents and images. There, a
channel keeps its weights where it means the same in both models; all other weights must fit as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cldm.build import load_config, outline
from cldm.control import BRANCHES
from cldm.control_ldm import ControlLDM
from cldm.data.hints import HintEncoder
from cldm.fusion import is_fusion_weight
from common.classes import load_class_table, plain_name
from common.errors import InputError
from ldm.checkpoint import size_of
from ldm.checkpoint_names import FIRST_STAGE, TEXT, UNET, module_of
from ldm.models.autoencoder import SpaceToDepth

# Weights with channels of masks, latents and images; the number is the dimension of these channels.
MASK_IN = f"{BRANCHES[0]}.input_hint_block.0.weight"
LATENT = {
    f"{UNET}.input_blocks.0.0.weight": 1,
    **{f"{branch}.input_blocks.0.0.weight": 1 for branch in BRANCHES},
    f"{BRANCHES[1]}.input_hint_block.0.weight": 1,
    f"{UNET}.out.2.weight": 0,
    f"{UNET}.out.2.bias": 0,
}
BANDS = {
    f"{FIRST_STAGE}.encoder.conv_in.weight": 1,
    f"{FIRST_STAGE}.analysis.weight": 1,
    f"{FIRST_STAGE}.decoder.conv_out.weight": 0,
    f"{FIRST_STAGE}.decoder.conv_out.bias": 0,
    f"{FIRST_STAGE}.synthesis.weight": 1,
    f"{FIRST_STAGE}.synthesis.bias": 0,
}
_READ_IMAGES = tuple(BANDS)[:2]  # the others write them


class Side(NamedTuple):
    """One of the two models: its configuration, and itself without memory for its weights."""

    config: Path
    model: ControlLDM


class Sides(NamedTuple):
    """The trained, smaller model and the larger one."""

    small: Side
    large: Side


class Start(NamedTuple):
    """What a weight starts from that does not fit as it is, or does, but with something to be said."""

    weight: Tensor
    how: str  # "whole", "in part" or "fresh"
    words: str


# ---- which models grow into which


def sides(small: Path, large: Path, classes: Path | None = None) -> Sides:
    """Both models, once they are known to have the same width and depth.

    Args:
        small: the YAML file that the smaller model was trained with.
        large: that of the model to start.
        classes: its class table, in place of the one that the file names.

    Raises:
        InputError: a file that describes no such model, or models of which one is no start for the other.
    """
    both = []
    for path, table in ((small, None), (large, classes)):
        config = load_config(path, table)
        config.model.params.pop("lora", None)  # layers within the networks, which sources are brought to by name
        model = outline(config, str(path))
        if not isinstance(model, ControlLDM):
            raise InputError(f"‹grow›: {path} describes no model with a mask branch (cldm.control_ldm.ControlLDM)")
        both.append(Side(path, model))
    there, here = both
    rule = "only classes, channels of the latent and bands may differ"
    for name in ("heads", "norm_groups"):  # no shape shows them, but what weights mean depends on them
        was, now = (getattr(side.model.model.diffusion_model, name) for side in both)
        if was != now:
            raise InputError(f"‹grow› {small}: its U-Net has {name} {was}, that of {large} has {now}; {rule}")
    fusion = there.model.fuses and here.model.fuses
    was, now = (dict(_trunk(side.model, fusion)) for side in both)
    keys = was | now
    if differ := [key for key in keys if key not in was or key not in now or was[key].shape != now[key].shape]:
        first = [size_of(of[differ[0]]) if differ[0] in of else "none" for of in (was, now)]
        raise InputError(
            f"‹grow› {small}: a model of another width or depth than {large}: {len(differ)} of {len(keys)} weights "
            f"differ ({differ[0]}: {first[0]} there, {first[1]} here); {rule}"
        )
    return Sides(there, here)


def _trunk(model: ControlLDM, fusion: bool) -> Iterator[tuple[str, Tensor]]:
    """The weights that must be alike; those that a plain ControlNet lacks only with ``fusion``."""
    trained = (UNET, *(BRANCHES if fusion else BRANCHES[:1]))
    for key, value in model.state_dict().items():
        at_an_edge = key == MASK_IN or key in LATENT
        if module_of(key) in trained and not at_an_edge and (fusion or not is_fusion_weight(key)):
            yield key, value


# ---- from the weights of the one to those of the other


def grow(
    state: dict[str, Tensor],
    origin: dict[str, str],
    own: Mapping[str, Tensor],
    models: Sides,
    allow: Sequence[str] = (),
) -> list[str]:
    """Brings a smaller model's weights to a larger one's channels, in place.

    Args:
        state: weights of the smaller model, by name; a first stage or text encoder may come from another source.
        origin: where each came from, in words.
        own: the larger model's weights, as it has drawn them.
        models: see ``sides``.
        allow: modules that need not fit, see ``ldm.checkpoint.load_weights``.

    Returns:
        a line for each weight that is not simply taken: both shapes, and what it starts from.

    Raises:
        InputError: weights that are not the smaller model's, or a first stage or text encoder that does not fit.
    """
    trained = models.small.model.state_dict()
    rules: dict[str, Callable[[Tensor, Tensor], Start | None]] = {MASK_IN: partial(mask_start, models)}
    rules |= {key: partial(latent_start, models, dim) for key, dim in LATENT.items()}
    for key in rules:
        if key in state and key in trained and state[key].shape != trained[key].shape:
            raise InputError(
                f"‹grow› {models.small.config}: {key} is {size_of(trained[key])}, but {size_of(state[key])} "
                f"{origin[key]}: give the configuration that these weights were trained with"
            )
    rules |= {key: partial(band_start, dim, key in _READ_IMAGES) for key, dim in BANDS.items()}
    lines = []
    for key, rule in rules.items():
        start = rule(state[key], own[key]) if key in state and key in own else None
        if start is not None:
            sizes = f"{size_of(state[key])} in the source, {size_of(own[key])} in the model"
            lines.append(f"{key}: {sizes}: {start.words}")
            state[key] = start.weight.to(own[key].dtype)
            origin[key] = {"whole": origin[key], "in part": f"in part {origin[key]}", "fresh": "fresh"}[start.how]
    if models.large.model.trainable != "all" and any(line.startswith(UNET) for line in lines):
        lines.append(f"{UNET}: learns the new channels only if it trains: model.params.trainable=all")
    return lines + _without_replaced(state, origin, own, allow)


def mask_start(models: Sides, weight: Tensor, own: Tensor) -> Start | None:
    """Of the mask branch's first convolution W: a class of the same name must look to it as it did.

    That can be had where each class has a channel of its own: W saw a class as values v, so the channel is W v. A new
    class starts at zero, as pixels to ignore look (in all encodings but ``index``): training may have hidden masks that
    way, while the mean of all classes is nothing that the branch has ever seen.

    Args:
        models: see ``sides``.
        weight: (O, C', 3, 3) of the smaller model.
        own: (O, C, 3, 3) of the larger one.

    Returns:
        None where the weight is taken as it is.

    Raises:
        InputError: which channel is which class is not known.
    """
    was, now = (side.model.hint_encoding for side in models)
    if now != "onehot" and weight.shape != own.shape:
        return Start(own, "fresh", f"fresh, for masks are encoded as {now}, not {was}")
    unknown = [side.config for side in models if side.model.classes is None]
    if unknown and weight.shape == own.shape and was == now:
        return None
    if unknown and now == "onehot":
        raise InputError(f"{unknown[0]}: model.params.classes is needed for ‹grow›, to know which channel is what")
    if now != "onehot" and was != now:
        return Start(weight, "whole", f"taken, though masks are encoded as {now}, not {was}")
    (names, values), (own_names, own_values) = map(_classes, models)
    place = {name: names.index(name) for name in own_names if name in names}
    if now != "onehot":
        others = [n for i, n in enumerate(own_names) if n in place and (values[:, place[n]] != own_values[:, i]).any()]
        words = f"taken, though masks show {_listed(others)} otherwise: better keep the order of the source's classes"
        return Start(weight, "whole", words) if others else None
    if was == now and names == own_names:
        return None
    channels = torch.einsum("oi...,ic->oc...", weight.float(), values)  # (O, classes of the smaller model, 3, 3)
    grown = torch.zeros_like(own)
    for name, there in place.items():
        grown[:, own_names.index(name)] = channels[:, there]
    new = [name for name in own_names if name not in place]
    words = f"{_listed(list(place))} as in the source" + (f", {_listed(new)} zero" if new else "")
    return Start(grown, "in part" if place else "fresh", words if place else "zero, for no class has the same name")


def _classes(side: Side) -> tuple[list[str], Tensor]:
    """The names of a model's classes, as names are compared, and the values (C, classes) that encode them."""
    encoding, read = side.model.hint_encoding, side.model.control_model.hint_channels
    table = load_class_table(str(side.model.classes), distinct_colors=encoding == "table")
    encode = HintEncoder(encoding, table)
    if encode.channels != read:
        raise InputError(
            f"{side.config}: masks of classes {side.model.classes} as hint_encoding {encoding} have {encode.channels} "
            f"channels, the mask branch reads {read} (control_stage_config.params.hint_channels)"
        )
    return [plain_name(name) for name in table.names], encode(np.arange(len(table))[None])[:, 0]


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def latent_start(models: Sides, dim: int, weight: Tensor, own: Tensor) -> Start | None:
    """Of a convolution that reads or writes latents: channels that mean the same in both first stages.

    What is new reads and says nothing at first, so that the shared channels are predicted as before; it learns from
    the first step on, since the weights on its other side are not zero.

    Args:
        models: see ``sides``.
        dim: the dimension of the latent's channels in ``weight``.
        weight: of the smaller model.
        own: of the larger one.
    """
    shared = shared_channels(models)
    if shared == models.small.model.channels == models.large.model.channels:
        return None
    if shared == 0:
        return Start(own, "fresh", "fresh, for the first stages' latents have nothing in common")
    return Start(
        _first(weight, own, dim, shared), "in part", f"the first {shared} channels as in the source, others zero"
    )


def shared_channels(models: Sides) -> int:
    """How many of the latent's first channels mean the same in both models.

    The coefficients of ``SpaceToDepth`` do, of blocks of one size, low frequencies first. What the channels of a
    trained first stage mean is its own: another number of them is another first stage.
    """
    stages = [side.model.first_stage_model for side in models]
    counts = [side.model.channels for side in models]
    if isinstance(stages[0], SpaceToDepth) and isinstance(stages[1], SpaceToDepth):
        return min(counts) if stages[0].factor == stages[1].factor else 0
    return counts[0] if type(stages[0]) is type(stages[1]) and counts[0] == counts[1] else 0


def band_start(dim: int, reads: bool, weight: Tensor, own: Tensor) -> Start | None:
    """Of a first stage's convolution that reads or writes images.

    Bands have no names: the first ones are taken to be those that the source knows. The encoder reads nothing of the
    others yet, so that latents keep their meaning; the decoder paints each of them as the mean of the known.

    Args:
        dim: the dimension of the bands in ``weight``.
        reads: whether it reads images.
        weight: of the smaller model.
        own: of the larger one.
    """
    sizes = [[n for i, n in enumerate(of.shape) if i != dim] for of in (weight, own)]
    if weight.shape == own.shape or sizes[0] != sizes[1]:
        return None  # nothing to do; or a network of another width, which is refused as a whole
    shared = min(weight.shape[dim], own.shape[dim])
    grown = _first(weight, own, dim, shared)
    if not reads and own.shape[dim] > shared:
        new = grown.narrow(dim, shared, own.shape[dim] - shared)
        new.copy_(weight.float().mean(dim, keepdim=True).expand_as(new))
    others = "zero" if reads else "their mean"
    return Start(grown, "in part", f"the first {shared} bands as in the source, others {others}")


def _first(weight: Tensor, own: Tensor, dim: int, number: int) -> Tensor:
    """Zeros of the shape of ``own``, with the first channels of ``weight``."""
    grown = torch.zeros_like(own)
    grown.narrow(dim, 0, number).copy_(weight.narrow(dim, 0, number))
    return grown


def _without_replaced(
    state: dict[str, Tensor], origin: dict[str, str], own: Mapping[str, Tensor], allow: Sequence[str]
) -> list[str]:
    """Leaves out the source's first stage and text encoder where the model has others; these must be whole.

    Neither trains with the model: what is random in them stays so.
    """
    lines = []
    for module in (FIRST_STAGE, TEXT):
        excused = {"all", module} & set(allow)
        lacking = [
            key
            for key, value in own.items()
            if module_of(key) == module and (key not in state or state[key].numel() != value.numel())
        ]
        if lacking and not excused:
            there = size_of(state[lacking[0]]) if lacking[0] in state else "none"
            raise InputError(
                f"‹grow›: the source's {module} is not this model's ({len(lacking)} weights do not fit, such as "
                f"{lacking[0]}: {there} there, {size_of(own[lacking[0]])} here), and training the model does not train "
                "it: name the weights of this one as a further ‹source›"
            )
        if replaced := [key for key in state if module_of(key) == module and key not in own]:
            lines.append(f"{module}: {len(replaced)} weights left out, which the model does not have")
            for key in replaced:
                del state[key], origin[key]
    return lines

"""Weights of our networks under diffusers' names, and back.

The names are translated in one direction alone (``ldm.diffusers_format``): a network of diffusers says its own names,
and these, translated, say which of our weights each of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.schema import one_line
from ldm.diffusers_format import vae_to_published

Translate = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
LINEAR_PATH = ("analysis.", "synthesis.")  # beside diffusers' autoencoder, and named as here


def first_stage_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of a first stage's weights, diffusers' or ``TISynthAutoencoder``'s, as published ones."""
    linear = {key: value for key, value in state.items() if key.startswith(LINEAR_PATH)}
    return {**vae_to_published({key: value for key, value in state.items() if key not in linear}), **linear}


def names_of(state: Mapping[str, Tensor], translate: Translate) -> dict[str, str]:
    """diffusers' names of a whole network's weights -> published ones.

    Args:
        state: all weights of the network, by diffusers' names.
        translate: see ``take``.
    """
    return dict(zip(state, translate(state), strict=True))


def take(network: nn.Module, state: Mapping[str, Tensor], translate: Translate, dtype: torch.dtype) -> nn.Module:
    """Gives a network of diffusers the weights of ours.

    Args:
        network: built without memory, on the device ``meta``.
        state: our network's weights, by published names.
        translate: diffusers' names to published ones; keeps the order.
        dtype: of the weights in the network.

    Returns:
        the network.

    Raises:
        InputError: the two do not have the same weights.
    """
    own = network.state_dict()
    names = names_of(own, translate)
    if different := sorted(set(names.values()) ^ state.keys()):
        raise InputError(
            f"diffusers' {type(network).__name__} is another network: {one_line(', '.join(different[:3]))} "
            f"({len(different)} weights that only one of the two has)"
        )
    # linear layers (C, D) and 1 x 1 convolutions (C, D, 1, 1) are the same matrix
    weights = {key: state[name].reshape(own[key].shape).to(dtype) for key, name in names.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()

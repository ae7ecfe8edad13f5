"""The discrete VAE of DALL-E (Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, section 2.1 and appendix A).

Picture (3, H, W) -> logits of 8,192 tokens (8192, H/8, W/8) -> picture: q_phi(z | x) and p_theta(x | z) of GSS. A
``DVAE`` takes and gives colors in 0..255, as the maskige has them; the networks within work in [0.1, 0.9]. Own
implementation of the paper's structure with the published parameter names: the ``dall_e`` package has had no release
since 2021 and unpickles code with its weights.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from gss.weights import read_state_dict, write_state_dict

_EPSILON = 0.1  # appendix A.3: images are mapped to [0.1, 0.9]
SCALE = 8  # image pixels a token's side


class Conv2d(nn.Module):
    """A "same" convolution whose parameters carry the published names ``w`` (out, in, k, k) and ``b`` (out)."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / (n_in * kernel**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, n_in, H, W) to (B, n_out, H, W)."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Bottleneck residual block: ``id_path(x) + gain * res_path(x)``, gain 1 / (number of blocks)^2."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        widths = [n_in, *[n_out // 4] * (len(kernels) - 1), n_out]
        layers: list[tuple[str, nn.Module]] = []
        for i, kernel in enumerate(kernels, start=1):
            layers += [(f"relu_{i}", nn.ReLU()), (f"conv_{i}", Conv2d(widths[i - 1], widths[i], kernel))]
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, n_in, H, W) to (B, n_out, H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


def _trunk(
    widths: list[int], n_blocks: int, kernels: tuple[int, ...], resample: nn.Module
) -> list[tuple[str, nn.Module]]:
    """The groups between input and output convolution; ``resample`` follows all groups but the last."""
    n_groups = len(widths) - 1
    gain = 1 / (n_groups * n_blocks) ** 2
    groups: list[tuple[str, nn.Module]] = []
    for g in range(1, n_groups + 1):
        blocks: list[tuple[str, nn.Module]] = [
            (f"block_{i}", Block(widths[g - 1] if i == 1 else widths[g], widths[g], kernels, gain))
            for i in range(1, n_blocks + 1)
        ]
        if g < n_groups:
            blocks.append(("resample", resample))
        groups.append((f"group_{g}", nn.Sequential(OrderedDict(blocks))))
    return groups


class Encoder(nn.Module):
    """Image in [0.1, 0.9] (B, 3, H, W) -> token logits (B, vocabulary, H/8, W/8)."""

    def __init__(self, n_hid: int = 256, n_blk_per_group: int = 2, vocab_size: int = 8192) -> None:
        super().__init__()
        widths = [n_hid, n_hid, 2 * n_hid, 4 * n_hid, 8 * n_hid]
        self.blocks = nn.Sequential(
            OrderedDict(
                [
                    ("input", Conv2d(3, n_hid, 7)),
                    *_trunk(widths, n_blk_per_group, (3, 3, 3, 1), nn.MaxPool2d(2)),
                    (
                        "output",
                        nn.Sequential(OrderedDict([("relu", nn.ReLU()), ("conv", Conv2d(8 * n_hid, vocab_size, 1))])),
                    ),
                ]
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Token logits of an image in [0.1, 0.9]."""
        return self.blocks(x)


class Decoder(nn.Module):
    """Tokens or their probabilities -> 6 channels (B, 6, H, W): location and log-scale of a logit-Laplace."""

    def __init__(self, n_init: int = 128, n_hid: int = 256, n_blk_per_group: int = 2, vocab_size: int = 8192) -> None:
        super().__init__()
        widths = [n_init, 8 * n_hid, 4 * n_hid, 2 * n_hid, n_hid]
        self.blocks = nn.Sequential(
            OrderedDict(
                [
                    ("input", Conv2d(vocab_size, n_init, 1)),
                    *_trunk(widths, n_blk_per_group, (1, 3, 3, 3), nn.Upsample(scale_factor=2, mode="nearest")),
                    ("output", nn.Sequential(OrderedDict([("relu", nn.ReLU()), ("conv", Conv2d(n_hid, 6, 1))]))),
                ]
            )
        )

    def forward(self, z: Tensor) -> Tensor:
        """Decodes token indices (B, h, w), or a distribution over them (B, vocabulary, h, w)."""
        first, *rest = cast("tuple[Conv2d, *tuple[nn.Module, ...]]", tuple(self.blocks))
        if z.dtype == torch.long:  # 1 x 1 convolution of a one-hot map = a row of its weights, without the map
            x = F.embedding(z, first.w[:, :, 0, 0].T).movedim(-1, 1) + first.b.view(1, -1, 1, 1)
        else:
            x = first(z)
        for layer in rest:
            x = layer(x)
        return x


class DVAE(nn.Module):
    """The discrete VAE, frozen and in eval mode whatever ``train()`` says, unless ``frozen`` is False.

    Pictures are RGB colors in 0..255, in and out.

    Args:
        weights: file with its weights, alone or in a GSS checkpoint, or the entries themselves; None leaves it to the
            checkpoint of the whole model.
        encoder: ``Encoder`` arguments; where neither these nor the decoder's are given, the weights' size, or DALL-E's.
        decoder: ``Decoder`` arguments.
        frozen: False to train it.

    Raises:
        InputError: weights missing or of another size.
    """

    def __init__(
        self,
        weights: str | dict[str, Tensor] | None = None,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        name = weights if isinstance(weights, str) else "given"
        if isinstance(weights, str) and not Path(weights).is_file():
            raise InputError(
                f"dVAE weights {weights}: no such file; make it with scripts.convert_dvae or "
                "scripts.train_dvae, or start from a GSS checkpoint, which holds its dVAE (--load-from)"
            )
        state = dvae_entries(read_state_dict(weights) if isinstance(weights, str) else weights) if weights else {}
        if weights is not None and encoder is None and decoder is None:
            encoder, decoder = _sizes(state, name)
        self.encoder, self.decoder = Encoder(**(encoder or {})), Decoder(**(decoder or {}))
        self.vocab_size: int = self.state_dict()["encoder.blocks.output.conv.b"].shape[0]
        self.frozen, self.loaded = frozen, False
        if weights is not None:
            _check(self.state_dict(), state, name)
            self.load_state_dict(state)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> DVAE:
        """Training mode, unless frozen."""
        return super().train(mode and not self.frozen)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.loaded |= any(key.startswith(f"{prefix}encoder.") for key in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_loaded(self) -> None:
        if self.frozen and not self.loaded:
            raise InputError("d_vae: has no weights; set d_vae.weights in the config, or load a whole GSS checkpoint")

    def logits(self, colors: Tensor) -> Tensor:
        """Token logits of pictures.

        Args:
            colors: (B, 3, H, W), 0..255, any real type, H and W multiples of 8.

        Returns:
            (B, vocabulary, H/8, W/8).

        Raises:
            InputError: H or W is no multiple of 8, or there are no weights.
        """
        self._check_loaded()
        height, width = colors.shape[-2:]
        if height % SCALE or width % SCALE:
            raise InputError(
                f"image of {height} x {width} pixels: the dVAE takes multiples of {SCALE}; pad or resize it"
            )
        with exact(colors):
            return self.encoder(map_pixels(colors))

    def tokens(self, colors: Tensor) -> Tensor:
        """Most likely tokens (B, H/8, W/8), int64; one by one, since the logits are the largest array there is."""
        return torch.cat([self.logits(one[None]).argmax(1) for one in colors])

    def decode(self, tokens: Tensor) -> Tensor:
        """Colors (B, 3, 8h, 8w), 0..255, of tokens (B, h, w), int64; one by one."""
        self._check_loaded()
        with exact(tokens):
            return torch.cat([255 * unmap_pixels(self.decoder(one[None])).clamp(0, 1) for one in tokens])


def exact(like: Tensor) -> torch.autocast:
    """Within the block, numbers keep the weights' precision, in a training in 16 bits, too.

    What a segmentor learns are the tokens and colors of the dVAE by which it is tested: of near ones, bfloat16 takes
    others.
    """
    return torch.autocast(like.device.type, enabled=False)


def map_pixels(colors: Tensor) -> Tensor:
    """Colors 0..255 as the encoder reads them, in [0.1, 0.9] (appendix A.3)."""
    return (1 - 2 * _EPSILON) * (colors / 255) + _EPSILON


def unmap_pixels(output: Tensor) -> Tensor:
    """The decoder's six channels (B, 6, H, W) as a picture (B, 3, H, W), 0..1 and a little beyond."""
    return (torch.sigmoid(output[:, :3]) - _EPSILON) / (1 - 2 * _EPSILON)


def save_dvae(dvae: DVAE, path: str | Path) -> None:
    """Writes a dVAE's weights, named as in a GSS checkpoint, as .safetensors or .pth."""
    write_state_dict({f"decode_head.d_vae.{key}": value for key, value in dvae.state_dict().items()}, path)


def dvae_entries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a dVAE, alone or within a GSS checkpoint (``...d_vae.encoder...``), by a dVAE's own names."""
    matches = {key: re.search(r"(?:^|d_vae\.)((?:encoder|decoder)\.blocks\..*)", key) for key in state}
    return {match.group(1): state[key] for key, match in matches.items() if match}


def _check(expected: dict[str, Tensor], state: dict[str, Tensor], name: str) -> None:
    for entries, other, what in ((expected, state, "missing"), (state, expected, "more than the config's dVAE has")):
        lost = [key for key in entries if key not in other]
        if lost:
            raise InputError(f"dVAE weights {name}: {len(lost)} entries {what}, first {lost[0]}")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"dVAE weights {name}: {key} has the shape {tuple(state[key].shape)}, the config's dVAE needs "
                f"{tuple(value.shape)}; set encoder and decoder (n_hid, n_blk_per_group, n_init) to the weights' size"
            )
        if not state[key].is_floating_point():
            raise InputError(f"dVAE weights {name}: {key} holds {state[key].dtype}, no weights")


def _sizes(state: dict[str, Tensor], name: str) -> tuple[dict[str, int], dict[str, int]]:
    """Encoder and decoder arguments that fit the entries."""
    try:
        vocab_size, n_hid = state["encoder.blocks.output.conv.b"].shape[0], state["encoder.blocks.input.b"].shape[0]
        n_init = state["decoder.blocks.input.b"].shape[0]
    except KeyError as error:
        raise InputError(f"dVAE weights {name}: no entry {error.args[0]}; is it a dVAE or a GSS checkpoint?") from error
    except IndexError as error:
        raise InputError(f"dVAE weights {name}: a bias without a shape; is it a dVAE or a GSS checkpoint?") from error
    n_blocks = len({key.split(".")[3] for key in state if key.startswith("encoder.blocks.group_1.")})
    shared = {"n_hid": n_hid, "n_blk_per_group": n_blocks, "vocab_size": vocab_size}
    sizes = shared, {"n_init": n_init, **shared}
    try:
        with torch.device("meta"):  # a bias of a million numbers would be weights of terabytes
            outline = nn.ModuleDict({"encoder": Encoder(**sizes[0]), "decoder": Decoder(**sizes[1])})
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"dVAE weights {name}: of a size that no dVAE has; is it one?") from error
    _check(outline.state_dict(), state, name)
    return sizes

"""First stages: pixel <-> latent conversion lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from ldm.modules.vae import Decoder, DiagonalGaussian, Encoder


class AutoencoderKL(nn.Module):
    """KL-regularized autoencoder of Stable Diffusion (Rombach et al. 2022, section 3.1); ``ldm.first_stage`` trains it.

    Args:
        ddconfig: arguments of ``Encoder`` and ``Decoder``.
        embed_dim: channels of the latent.
        linear_path: beside the networks, a linear map of each block of f x f pixels to the latent, and one back
            (residual autoencoding, Chen et al., DC-AE, ICLR 2025, section 3.2). ``ldm.first_stage.linear_start`` starts
            them from the data's principal components: the networks then learn what those leave out.
        lossconfig, monitor, image_key, ckpt_path: of published YAML files, for their own training; without effect.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        embed_dim: int,
        lossconfig: Any = None,
        monitor: str | None = None,
        image_key: str = "image",
        ckpt_path: str | None = None,
        linear_path: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.latent_channels = embed_dim
        self.bands: int = ddconfig["in_channels"]
        self.factor = 2 ** (len(ddconfig["ch_mult"]) - 1)  # pixels a latent pixel
        self.linear_path = linear_path
        if linear_path:
            self.analysis = nn.Conv2d(ddconfig["in_channels"], embed_dim, self.factor, stride=self.factor)
            self.synthesis = nn.ConvTranspose2d(embed_dim, ddconfig["out_ch"], self.factor, stride=self.factor)

    def decoding(self) -> list[nn.Module]:
        """The parts that make an image of a latent."""
        return [self.post_quant_conv, self.decoder, *([self.synthesis] if self.linear_path else [])]

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Image (B, bands, H, W) in [-1, 1] -> posterior of the latent (B, C, H/f, W/f)."""
        moments = self.quant_conv(self.encoder(x))  # (B, 2 C, H/f, W/f): mean and log-variance
        if self.linear_path:
            mean, log_variance = moments.chunk(2, dim=1)
            moments = torch.cat([mean + self.analysis(x), log_variance], dim=1)
        return DiagonalGaussian(moments)

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, C, h, w) -> image (B, bands, h*f, w*f), about [-1, 1]."""
        image = self.decoder(self.post_quant_conv(z))
        return image + self.synthesis(z) if self.linear_path else image


class FixedPosterior:
    """A posterior without spread: what a fixed, lossless first stage gives."""

    def __init__(self, latent: Tensor) -> None:
        self.parameters = self.mean = latent

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """The latent (B, C, h, w)."""
        return self.mean

    def mode(self) -> Tensor:
        """The latent (B, C, h, w)."""
        return self.mean


class SpaceToDepth(nn.Module):
    """A fixed first stage for models that train without a VAE: every f x f pixels become the channels of one.

    The channels are the block's orthonormal DCT coefficients of luminance and two opponent colors, low frequencies
    first; of other bands, of the combinations that ``basis`` has. With all of them, unscaled, the latent is a rotation
    of the pixels: nothing is lost. With ``deviations``, high frequencies are left out and the others scaled to about
    unit variance, as a VAE's are: a small denoiser then has less, and nothing faint, to predict.

    Args:
        factor: block size f in pixels.
        deviations: standard deviations of the coefficients of each order u + v = 0, 1, ..., images in [-1, 1]: one
            triple (luminance, red-green, yellow-blue) an order, or one number a row of ``basis``; orders beyond the
            list are left out. Smaller numbers than the data's own give an order more weight. None keeps all, unscaled.
        basis: N orthonormal rows that combine N bands, as ``tisynth stats`` measures them; None: the opponent colors of
            red, green and blue.

    Raises:
        InputError: no such block, deviations that are not positive, or rows that are not orthonormal.
    """

    def __init__(
        self,
        factor: int = 4,
        deviations: Sequence[Sequence[float]] | None = None,
        basis: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        rows = _opponent_colors() if basis is None else _orthonormal(basis)
        self.bands = len(rows)
        scales = [list(row) for row in deviations or [[1.0] * self.bands] * (2 * factor - 1)]
        fit = all(len(row) == self.bands and min(row) > 0 for row in scales)
        if factor < 1 or len(scales) > 2 * factor - 1 or not fit:
            what = "triples" if self.bands == 3 else f"rows of {self.bands}"
            raise InputError(f"first_stage_config: factor {factor}, deviations {deviations}: not positive {what}")
        self.factor = factor
        frequencies, order = _dct_basis(factor)
        frequencies, order = frequencies[order < len(scales)], order[order < len(scales)]
        self.latent_channels = self.bands * len(frequencies)
        self.orders = order  # (K,)
        # (K, f^2) and (N, N), orthonormal rows; (K, N) deviations
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("colors", rows, persistent=False)
        self.register_buffer("deviation", torch.tensor(scales, device="cpu")[order], persistent=False)
        self.frequencies: Tensor
        self.colors: Tensor
        self.deviation: Tensor

    def encode(self, x: Tensor) -> FixedPosterior:
        """Image (B, N, H, W) in [-1, 1] -> latent (B, N K, H/f, W/f)."""
        blocks = F.pixel_unshuffle(x, self.factor).unflatten(1, (self.bands, -1))  # (B, N, f^2, h, w)
        analysis = torch.einsum("kn,dc->kdcn", self.frequencies, self.colors) / self.deviation[..., None, None]
        return FixedPosterior(torch.einsum("kdcn,bcnhw->bkdhw", analysis.to(x.dtype), blocks).flatten(1, 2))

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, N K, h, w) -> image (B, N, h*f, w*f)."""
        coefficients = z.unflatten(1, (-1, self.bands))  # (B, K, N, h, w)
        synthesis = torch.einsum("kn,dc->kdcn", self.frequencies, self.colors) * self.deviation[..., None, None]
        blocks = torch.einsum("kdcn,bkdhw->bcnhw", synthesis.to(z.dtype), coefficients)
        return F.pixel_shuffle(blocks.flatten(1, 2), self.factor)


def _opponent_colors() -> Tensor:
    """Rows of an orthonormal (3, 3) matrix: luminance, red against green, yellow against blue."""
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], device="cpu")
    return rows / rows.norm(dim=1, keepdim=True)


def _orthonormal(basis: Sequence[Sequence[float]]) -> Tensor:
    """Rows (N, N) as a file has them, rounded, made orthonormal again.

    Raises:
        InputError: they are not by far.
    """
    wrong = InputError("first_stage_config: basis: must be N orthonormal rows of N numbers; `tisynth stats` writes one")
    if any(len(row) != len(basis) for row in basis):
        raise wrong
    rows = torch.tensor([list(row) for row in basis], dtype=torch.float64, device="cpu")
    left, lengths, right = torch.linalg.svd(rows)
    if (lengths - 1).abs().max() > 1e-2:
        raise wrong
    return (left @ right).float()  # the nearest orthonormal rows


def _dct_basis(size: int) -> tuple[Tensor, Tensor]:
    """Orthonormal DCT-II of blocks: rows (size^2, size^2), low frequencies first, and their orders u + v."""
    n = torch.arange(size, dtype=torch.float64, device="cpu")
    one = torch.cos(torch.pi * (2 * n[None] + 1) * n[:, None] / (2 * size)) * (2 / size) ** 0.5  # (k, n)
    one[0] /= 2**0.5
    orders = (n[:, None] + n[None]).flatten().long()
    rank = torch.argsort(orders, stable=True)
    return torch.kron(one, one)[rank].float(), orders[rank]

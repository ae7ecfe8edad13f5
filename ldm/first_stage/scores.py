"""What images lose in a first stage's round trip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from common.bands import Bands
from ldm.first_stage.data import range_of, read_with_gaps, to_tensor

SMALLEST = 11  # pixels: the window of SSIM


@dataclass(frozen=True)
class ImageScores:
    """Of one image: PSNR in dB (infinite for equal images), and SSIM up to 1 (Wang et al. 2004)."""

    name: str
    psnr: float
    ssim: float


@torch.no_grad()
def reconstruct(first_stage: Any, image: Tensor) -> Tensor:
    """An image (bands, H, W) in [-1, 1] of any size through the mean of its latent; alike.

    What does not divide by the first stage's factor is mirrored at the right and the bottom, and cut off again.
    """
    height, width = image.shape[1:]
    padding = [0, -width % first_stage.factor, 0, -height % first_stage.factor]
    padded = F.pad(image[None], padding, mode="reflect" if min(height, width) > max(padding) else "replicate")
    return first_stage.decode(first_stage.encode(padded).mode())[0, :, :height, :width].float().clamp(-1, 1)


def image_scores(name: str, real: Tensor, made: Tensor) -> ImageScores:
    """Scores of an image (bands, H, W) in [-1, 1] and its reconstruction."""
    psnr = peak_signal_noise_ratio(made[None], real[None], data_range=2.0)
    ssim = structural_similarity_index_measure(made[None], real[None], data_range=2.0)
    return ImageScores(name, float(psnr), float(ssim))  # type: ignore[arg-type]


def round_trips(
    first_stage: Any, files: Sequence[Path], value_range: Sequence[float], device: str, bands: Bands | None = None
) -> Iterator[tuple[ImageScores, NDArray[Any]]]:
    """Each file's scores, and its reconstruction (H, W, bands) in numbers as ``read_with_gaps`` gives them.

    Pixels without data count as reconstructed.

    Args:
        first_stage: on the device.
        files: images with the first stage's number of bands.
        value_range: what the files' values -1 and 1 stand for.
        device: of the first stage.
        bands: what is stated of the images' bands.
    """
    for path in files:
        low, high = value_range = range_of(path, value_range, bands)
        pixels, valid = read_with_gaps(path, bands)
        real = to_tensor(pixels, value_range).to(device)
        made = reconstruct(first_stage, real)
        if valid is not None:
            made = torch.where(torch.from_numpy(valid).to(device), made, real)
        values = ((made + 1) * ((high - low) / 2) + low).permute(1, 2, 0).cpu().numpy()
        if pixels.dtype.kind != "f":
            values = values.round()
        rounded = to_tensor(values, value_range).to(device)
        yield image_scores(path.name, real, rounded), values.astype(pixels.dtype)

"""Free tricks for a segmentor's training, as steps of mmseg's pipelines: what synthesized images are compared with.

Two give an image the look of unlabeled references, one shows rare classes more often. They draw from the generator that
is seeded for each draw of an item (``segmentation.reproducible``), so a resumed training is an unbroken one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS  # mmengine's own, which is searched whatever default scope a config has
from numpy.typing import NDArray
from scipy.fft import irfft2, rfft2

from common.bands import bands_of, read_pixels
from common.errors import InputError
from common.images import IGNORE, Labels
from common.pairing import IMAGE_SUFFIXES, list_files
from common.pixels import Pixels
from segmentation.loading import as_mmcv_reads

_FLAT = 1e-6  # a spread (in CIELAB) below which a channel has no contrast that could be scaled


def swap_amplitude(image: NDArray[Any], reference: NDArray[Any], beta: float) -> NDArray[Any]:
    """Fourier domain adaptation (Yang & Soatto, CVPR 2020, section 3.1): low frequencies get the reference's amplitude.

    x' = F^-1(M F^A(x_ref) + (1 - M) F^A(x), F^P(x)): M selects the frequencies up to beta x the shorter side, F^A and
    F^P are amplitude and phase of each channel's Fourier transform.

    Args:
        image: (H, W, bands), 0..255.
        reference: of the same shape.
        beta: 0 (the image as it is) to 0.5 (all frequencies of a square image).

    Returns:
        (H, W, bands) of the image's type, cut to 0..255, and rounded where it is of bytes.
    """
    if beta == 0:
        return image
    height, width = image.shape[:2]
    highest = int(beta * min(height, width))
    spectrum = rfft2(image.astype(np.float32), axes=(0, 1))  # (H, W // 2 + 1, bands)
    wanted = np.abs(rfft2(reference.astype(np.float32), axes=(0, 1)))
    # of a real image's spectrum, columns of negative frequencies are not stored; rows of negative ones come last
    low = np.ix_(np.r_[0 : highest + 1, height - highest : height], np.arange(highest + 1))
    spectrum[low] = wanted[low] * np.exp(1j * np.angle(spectrum[low]))
    return _as_pixels(irfft2(spectrum, s=(height, width), axes=(0, 1)), image)


def transfer_color(
    image: NDArray[Any], reference: NDArray[Any], known: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """Color transfer (Reinhard et al., IEEE CG&A 2001): each channel gets the reference's mean and spread.

    The channels are CIELAB's, where the paper takes l-alpha-beta, which has no value for black; of other than three
    bands, the bands themselves.

    Args:
        image: (H, W, bands), 0..255, BGR.
        reference: (H', W', bands), BGR.
        known: (H, W), which of the image's pixels have data and so count; None for all.

    Returns:
        (H, W, bands) of the image's type; numbers that 0..255 does not hold are cut.
    """
    colors = image.shape[2] == 3

    def channels(pixels: NDArray[Any]) -> NDArray[Any]:
        values = pixels.astype(np.float32) / 255
        return cv2.cvtColor(values, cv2.COLOR_BGR2LAB) if colors else values

    own, wanted = channels(image), channels(reference)
    seen = own if known is None else own[known][None]
    spread = np.maximum(seen.std(axis=(0, 1)), _FLAT)
    moved = (own - seen.mean(axis=(0, 1))) * (wanted.std(axis=(0, 1)) / spread) + wanted.mean(axis=(0, 1))
    moved = moved.astype(np.float32)
    return _as_pixels(255 * (cv2.cvtColor(moved, cv2.COLOR_LAB2BGR) if colors else moved), image)


def _as_pixels(values: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    whole = values if like.dtype.kind == "f" else np.rint(values)
    return whole.clip(0, 255).astype(like.dtype)


class FromReference(BaseTransform):
    """Base of steps that change an image by one of the references, drawn anew each time.

    Args:
        references: folder of images, which need no labels.
        prob: how often, 0..1.
        bands: what is stated of their bands, as of ``ReadImage``; None for three of 8 bits.

    Raises:
        InputError: no such folder, or no image in it.
    """

    def __init__(self, references: str, prob: float = 0.5, bands: dict[str, Any] | None = None) -> None:
        self.bands = bands_of(bands, f"bands of {type(self).__name__}")
        self.files = sorted(list_files(Path(references), IMAGE_SUFFIXES, "‹references›").values())
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``img`` (H, W, bands), BGR; the mask stays."""
        if random.random() < self.prob:
            reference = read_pixels(random.choice(self.files), self.bands)
            reference = replace(reference, values=as_mmcv_reads(reference.values))
            results["img"] = self.changed(results["img"], reference, results.get("valid"))
        return results

    def changed(self, image: NDArray[Any], reference: Pixels, known: NDArray[np.bool_] | None) -> NDArray[Any]:
        """The image (H, W, bands), whose pixels have data where ``known`` says so, as the reference has it."""
        raise NotImplementedError


@TRANSFORMS.register_module()
class FourierStyle(FromReference):
    """See ``swap_amplitude``; the reference is scaled to the image's size.

    Args:
        references: folder of images.
        beta: share of the shorter side up to which frequencies count as style, 0..0.5; the paper has 0.01 to 0.09.
        prob: how often, 0..1.
        bands: see ``FromReference``.
    """

    def __init__(
        self, references: str, beta: float = 0.01, prob: float = 0.5, bands: dict[str, Any] | None = None
    ) -> None:
        super().__init__(references, prob, bands)
        if not 0 <= beta <= 0.5:
            raise InputError(f"‹fda_beta› {beta}: write a number, 0 to 0.5")
        self.beta = beta

    def changed(self, image: NDArray[Any], reference: Pixels, known: NDArray[np.bool_] | None) -> NDArray[Any]:
        """See ``swap_amplitude``."""
        size = image.shape[1], image.shape[0]
        # band by band: OpenCV averages areas of four bands at most
        bands = [cv2.resize(band, size, interpolation=cv2.INTER_AREA) for band in cv2.split(reference.values)]
        return swap_amplitude(image, np.dstack(bands), self.beta)


@TRANSFORMS.register_module()
class ColorTransfer(FromReference):
    """See ``transfer_color``."""

    def changed(self, image: NDArray[Any], reference: Pixels, known: NDArray[np.bool_] | None) -> NDArray[Any]:
        """See ``transfer_color``."""
        wanted = reference.values if reference.valid.all() else reference.values[reference.valid][None]
        return transfer_color(image, wanted, known)


def rare_classes(pixels: NDArray[Any]) -> list[int]:
    """Classes that are shown, by less than half of an even share, 1 / (2 C); the rarest one where there is none.

    Args:
        pixels: of each class (C,).
    """
    shown = np.flatnonzero(pixels)
    rare = [int(c) for c in shown if pixels[c] < pixels.sum() / (2 * len(pixels))]
    return rare or [int(c) for c in shown[np.argsort(pixels[shown], kind="stable")][:1]]


@TRANSFORMS.register_module()
class PasteRareClasses(BaseTransform):
    """Copy-paste (Ghiasi et al., CVPR 2021) for classes: another image's pixels of rare classes, put over an image.

    The other image is one of those of the training set that show such a class, mirrored at random; it is laid on the
    image's upper left corner. Its masks are all read once, before the training.

    Args:
        classes: ids of rare classes; by default those that ``rare_classes`` finds in the training set.
        prob: how often, 0..1.
        bands: what is stated of the images' bands, as of ``ReadImage``; None for three of 8 bits.
    """

    def __init__(self, classes: Sequence[int] = (), prob: float = 0.5, bands: dict[str, Any] | None = None) -> None:
        self.classes, self.prob = list(classes), prob
        self.bands = bands_of(bands, "bands of PasteRareClasses")
        self.donors: list[tuple[Path, Path]] = []
        self.labels: Labels | None = None

    def take_pairs(self, pairs: Sequence[tuple[Path, Path]], labels: Labels) -> None:
        """Called by ``MaskDataset``: the real images and masks to paste from, and how masks are read."""
        counts = [labels.pixels_of_classes(labels.count(mask)[0]) for _, mask in pairs]  # (n, C)
        self.labels = labels
        self.classes = self.classes or rare_classes(np.sum(counts, axis=0))
        self.donors = [pair for pair, row in zip(pairs, counts, strict=True) if row[self.classes].any()]

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img`` (H, W, bands), ``gt_seg_map`` (H, W) and, if there is one, ``gt_weight_map`` (H, W)."""
        if self.labels is None or not self.donors or random.random() >= self.prob:
            return results
        path, mask_path = random.choice(self.donors)
        pixels = read_pixels(path, self.bands)
        image, mask = as_mmcv_reads(pixels.values), np.where(pixels.valid, self.labels.read(mask_path), IGNORE)
        if random.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        height, width = (min(sides) for sides in zip(mask.shape, results["gt_seg_map"].shape, strict=True))
        image, mask = image[:height, :width], mask[:height, :width]
        pasted = np.isin(mask, self.classes)
        changed: dict[str, Any] = {"img": image, "gt_seg_map": mask, "gt_weight_map": np.full_like(mask, 255)}
        for key, values in changed.items():
            if key in results:
                results[key] = results[key].copy()
                results[key][:height, :width][pasted] = values[pasted]
        return results

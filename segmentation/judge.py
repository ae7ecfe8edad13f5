"""A segmentor for images that are still tensors: its logits have a gradient, and are those of its config's own test.

Synthesis is guided by it, and lets it choose (``cldm.synthesis.judging.Judge``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner.amp import autocast
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.band_conversion import Conversion, conversion
from common.bands import Bands, of_file
from common.config_options import ConfigOptions
from common.errors import InputError
from common.files import file_hash
from common.images import ImageError
from common.pairing import faults_of, without_faults
from common.rasters import write_geotiff
from common.schema import one_line
from segmentation.inference import Segmentor, open_segmentor, test_pipeline
from segmentation.loading import as_mmcv_reads
from segmentation.scores import logits_of

_ROUNDING = 2.0  # gray levels by which two ways of resizing may differ


class SegmentorJudge:
    """See ``cldm.synthesis.judging.Judge``.

    Args:
        segmentor: with weights.
        weights: their file.
        bands: what is stated of the images that it looks at; None for three of 8 bits.
    """

    def __init__(self, segmentor: Segmentor, weights: str | Path, bands: Bands | None = None) -> None:
        self.segmentor, self.weights, self.bands = segmentor, weights, bands
        self.identity = {
            "weights": Path(weights).name,
            "hash": file_hash(weights),
            "config_hash": segmentor.settings()[:16],
        }
        self._targets, self._labels = segmentor.rule.targets(), segmentor.labels()
        self._prepared = lru_cache(maxsize=64)(self._probe)
        segmentor.model.requires_grad_(False)

    def of_bands(self, bands: Bands) -> SegmentorJudge:
        """The same for images of stated bands: values in 0..255 of their ranges, in the model's order.

        Raises:
            InputError: its config reads others.
        """
        judge = SegmentorJudge(self.segmentor, self.weights, bands)
        _ = judge.conversion  # refused here
        return judge

    @cached_property
    def conversion(self) -> Conversion:
        """How the images' values become those that its config reads."""
        return conversion(self.bands, self.segmentor.bands, str(self.segmentor.config.filename))

    def _as_read(self, images: Tensor) -> Tensor:
        """Images (B, bands, H, W) as its config reads them of files."""
        how = self.conversion
        if not how.same:
            factor, shift = (images.new_tensor(one)[:, None, None] for one in (how.factor, how.shift))
            images = (images[:, list(how.index)] * factor + shift).clamp(0, 255)
        return images.flip(1) if images.shape[1] == 3 else images  # BGR, as mmcv reads files

    # Weights that are moved in inference mode, or tensors that a model keeps from there, would have no gradient.
    @torch.inference_mode(False)
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, H, W) and class (B, H, W) of each pixel of images (B, bands, H, W): RGB, 0..255 as float.

        The images are prepared as the config's test prepares files (but for the rounding of numbers), normalized as
        its preprocessor does, and the classes are decided as there.
        """
        segmentor = self.segmentor
        if next(segmentor.model.parameters()).device != images.device:
            segmentor.model.to(images.device)
        size, facts = self._prepared(images.shape[2], images.shape[3])
        inputs = self._as_read(images)
        if inputs.shape[2:] != size:
            inputs = F.interpolate(inputs, size, mode="bilinear", align_corners=False)
        data = {"inputs": list(inputs), "data_samples": [SegDataSample(metainfo=facts) for _ in images]}
        with autocast(enabled=segmentor.half_precision()):
            samples: list[Any] = segmentor.model.test_step(data)
        if any("seg_logits" not in sample for sample in samples):
            raise InputError(f"{segmentor.config.filename}: {segmentor.config.model.type} predicts no logits")
        logits = torch.stack([logits_of(segmentor.model, sample) for sample in samples])
        return logits, torch.stack([sample.pred_sem_seg.data[0].long() for sample in samples])

    def labels(self, mask: str, size: tuple[int, int]) -> NDArray[Any]:
        """The label of each pixel of a mask file, resized to (H, W), uint8; 255 where the segmentor has none."""
        labels = self._targets[self._labels.file_ids(mask)]
        return labels if labels.shape == size else np.asarray(Image.fromarray(labels).resize(size[::-1], _NEAREST))

    def check(self, masks: Iterable[str], sizes: Iterable[tuple[int, int]], gradient: bool) -> None:
        """Refuses masks and sizes (H, W) of images that the segmentor cannot take.

        Raises:
            InputError: ids that are none of its classes; a preparation of images that tensors cannot be given; or a
                decision without gradient, where one is wanted.
        """
        files, name = [Path(mask) for mask in masks], self.segmentor.config.filename
        without_faults(files, faults_of(files, self._fault, "masks"), str(name), False)
        for height, width in sizes:
            count = 3 if self.bands is None else self.bands.count
            probe = torch.full((1, count, height, width), 127.0, requires_grad=gradient)
            try:
                logits, _ = self.look(probe)
            except RuntimeError as error:
                raise InputError(f"{name}: cannot take {width} x {height} px ({one_line(error)})") from error
            if gradient and not logits.requires_grad:
                raise InputError(f"{name}: {self.segmentor.config.model.type} decides without a gradient; name another")

    def _fault(self, mask: Path) -> str | None:
        try:
            wrong = self._labels.wrong(self._labels.file_ids(mask))
        except InputError as error:
            return str(error)
        return str(ImageError.of(mask, wrong)) if wrong else None

    def _probe(self, height: int, width: int) -> tuple[torch.Size, dict[str, Any]]:
        """Size of the network's input for images of H x W px, and what mmseg is told of them.

        The config's own steps say so, of a file that is made for it. They may resize an image, and nothing else.
        """
        bands = self.segmentor.bands
        count = 3 if bands is None else bands.count
        noise = np.random.default_rng(0).integers(0, 256, (height, width, count), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.png" if bands is None else "probe.tif")
            if bands is None:
                Image.fromarray(noise).save(path)
            else:
                own = bands.model_copy(update={"dtype": "float32", "nodata": None})
                write_geotiff(path, own.stored(noise / 127.5 - 1), None, **of_file(own))
            prepared = test_pipeline(self.segmentor.config)({"img_path": str(path)})
        inputs: Tensor = prepared["inputs"].float()
        ours = torch.from_numpy(as_mmcv_reads(noise)).movedim(-1, 0)[None].float()
        resized = F.interpolate(ours, inputs.shape[1:], mode="bilinear", align_corners=False)[0]
        if inputs.shape != resized.shape or (inputs - resized).abs().max() > _ROUNDING:
            raise InputError(
                f"{self.segmentor.config.filename}: its test pipeline does more to an image than to load and resize "
                "it, which is only done to files; take a config whose preprocessor normalizes"
            )
        return inputs.shape[1:], dict(prepared["data_samples"].metainfo)


_NEAREST = Image.Resampling.NEAREST


def open_judge(
    config: str | Path,
    weights: str | Path,
    settings: ConfigOptions | None = None,
    classes: str | Path | None = None,
) -> SegmentorJudge:
    """The segmentor of a config and its weights, on the CPU; it follows the images to their device.

    Args:
        config: mmseg config.
        weights: a file, or an address that it is fetched from.
        settings: what replaces settings of the config.
        classes: class table of the masks; the config's by default.

    Raises:
        InputError: see ``segmentation.inference.open_segmentor``.
    """
    segmentor = open_segmentor(config, weights, settings, classes, "cpu")
    return SegmentorJudge(segmentor, segmentor.weights)

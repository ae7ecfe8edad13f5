"""All that the page works with, opened once: the model, its classes, and the segmentor with its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cldm.build import create_model
from cldm.control_ldm import ControlLDM
from cldm.distillation.student import ConsistencyStudent
from cldm.synthesis.run import HALF
from common.classes import ClassTable, load_class_table
from common.config_options import ConfigOptions
from common.devices import cpu_multiplies_bf16, pick_device
from common.errors import InputError
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files
from common.sound_pairs import sound_pairs
from common.trust import trust
from post_processing import filter_rule as rule
from post_processing.filter_state import read_real_loss
from segmentation.inference import Segmentor, open_segmentor
from web.masks import brush_palette
from web.options import WebOptions


@dataclass(frozen=True, eq=False)
class Studio:
    """What paints and judges.

    Attributes:
        options: of the page, filled.
        model: with weights, on its device.
        device: ``cpu``, ``cuda:0``...
        precision: of its weights, as the command that synthesizes takes it.
        class_table: name or file of the class table.
        table: the class table.
        palette: the brush's color of each class, (C, 3) uint8.
        segmentor: makes masks of photos, and looks at images; None where none is named.
        limits: the largest loss that the filter leaves in each class, in nats (C,); None where no real image says.
    """

    options: WebOptions
    model: ControlLDM
    device: str
    precision: str
    class_table: str
    table: ClassTable
    palette: NDArray[Any]
    segmentor: Segmentor | None = None
    limits: NDArray[Any] | None = None

    @property
    def distilled(self) -> bool:
        """Whether the model paints in a few steps, guidance within."""
        return isinstance(self.model, ConsistencyStudent)

    @property
    def side(self) -> int:
        """Of masks and images, in pixels."""
        return self.options.size

    def references(self) -> list[Path]:
        """Reference images to choose from; none where no folder is named.

        Raises:
            InputError: the folder holds none.
        """
        return _files(self.options.references, IMAGE_SUFFIXES, "‹references›")

    def masks(self) -> list[Path]:
        """Masks to start from, alike."""
        return _files(self.options.masks, MASK_SUFFIXES, "‹masks›")


def _files(folder: Path | None, suffixes: tuple[str, ...], named: str) -> list[Path]:
    return [] if folder is None else list(list_files(folder, suffixes, named).values())


def open_studio(options: WebOptions) -> Studio:
    """Opens what the options name, and checks that it fits together.

    Raises:
        InputError: a file that is not there or is no model, classes that are not named, a size that the model does not
            paint, a segmentor of other classes.
    """
    options = options.filled()
    assert options.config is not None and options.model is not None  # filled
    trust(options.trust)
    device = pick_device(options.device)
    precision = precision_of(options, device)
    over: dict[str, Any] = {} if options.classes is None else {"classes": options.classes}
    model = create_model(options.config, options.model, use_ema=options.use_ema, **over)
    if model.bands is not None:
        raise InputError(f"{options.config}: the page shows images of three bands of 8 bits, this model makes others")
    if options.size % model.multiple:
        raise InputError(f"‹size› {options.size}: must be a multiple of {model.multiple} px for this model")
    named = options.classes or model.classes
    if named is None:
        raise InputError(f"‹classes›: {options.config} names no class table; name one")
    torch.set_float32_matmul_precision("high")  # as the command that synthesizes does
    model.accelerate()
    table = load_class_table(named)
    segmentor = _segmentor(options, named, device)
    if segmentor is not None and segmentor.num_classes != len(table):
        raise InputError(f"‹segmentor›: tells {segmentor.num_classes} classes apart, {named} has {len(table)}")
    limits = None if segmentor is None else limits_of(options, segmentor)
    model.to(device, HALF.get(precision, torch.float32))
    return Studio(options, model, device, precision, named, table, brush_palette(table), segmentor, limits)


def precision_of(options: WebOptions, device: str) -> str:
    """Of the weights, as the command that synthesizes takes it."""
    if options.precision != "auto":
        return options.precision
    return "bf16" if device == "cpu" and cpu_multiplies_bf16() else "32"


def _segmentor(options: WebOptions, classes: str, device: str) -> Segmentor | None:
    if options.segmentor is None:
        return None
    config, weights = options.segmentor
    return open_segmentor(config, weights, ConfigOptions(trust_config=options.trust_config), classes, device)


def limits_of(options: WebOptions, segmentor: Segmentor) -> NDArray[Any] | None:
    """The largest loss that the filter leaves in each class, in nats, float64 (C,), see ``filter_rule.thresholds``.

    It is measured on the real images now, as the filter's first pass does, or read where that has been done.

    Raises:
        InputError: images, masks or a folder of losses that cannot be used.
    """
    if options.from_loss is not None:
        real = read_real_loss(options.from_loss)
        if real.classes != segmentor.class_names:
            raise InputError(f"‹from_loss› {options.from_loss}: is of other classes than the segmentor's")
        return rule.thresholds(real.means(), options.tolerance_margin)
    if options.real_img_path is None or options.real_label_path is None:
        return None
    named = ("‹real_img_path›", "‹real_label_path›")
    labels, count = segmentor.labels(), segmentor.num_classes
    pairs = sound_pairs(
        options.real_img_path, options.real_label_path, named, labels, same_size=True, look=segmentor.look
    ).pairs
    sums, pixels = [], []
    files = [(pair.image, pair.mask) for pair in pairs]
    for _, loss, ids in segmentor.pixel_losses(files, [range(i, i + 1) for i in range(len(files))], num_workers=0):
        classes = labels.table[ids].astype(np.uint8)
        sums.append(rule.class_sums(loss, classes, count).tolist())
        pixels.append(rule.class_counts(classes, count))
    return rule.thresholds(rule.mean_loss(sums, np.array(pixels)), options.tolerance_margin)

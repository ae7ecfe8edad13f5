"""How good a first stage is, on images that it has not seen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.bands import of_file
from common.configuration import read_configuration
from common.devices import pick_device
from common.files import atomic_path, check_writable, write_json
from common.pairing import IMAGE_SUFFIXES, list_files
from common.rasters import place_of, write_geotiff
from ldm.first_stage.data import check_images
from ldm.first_stage.loading import load_first_stage, stated_bands
from ldm.first_stage.options import FirstStageScoresOptions
from ldm.first_stage.scores import SMALLEST, ImageScores, round_trips


def evaluate(
    options: FirstStageScoresOptions, recognized: Callable[[Path], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Checks everything, judges, and writes the report.

    Args:
        options: what to judge.
        recognized: says of a folder of reconstructions what a segmentor finds in them; they are PNG, or GeoTIFF of
            stated bands, under the images' names.

    Returns:
        the report.

    Raises:
        InputError: anything that this would trip over.
    """
    check_writable(options.out.parent, "‹out›")
    device = pick_device(options.device)
    configuration = read_configuration([options.config])
    first_stage, bands = load_first_stage(configuration.values, configuration.source, options.weights, options.use_ema)
    stated = stated_bands(configuration.values)
    suffixes = IMAGE_SUFFIXES if bands == 3 or stated is not None else (".npy",)
    files = list_files(options.images, suffixes, "‹images›")
    check_images(list(files.values()), SMALLEST, bands, stated)
    found: list[ImageScores] = []
    with tempfile.TemporaryDirectory() as temporary:
        made = options.reconstructions or Path(temporary)
        if options.reconstructions is not None:
            check_writable(made, "‹reconstructions›")
            made.mkdir(parents=True, exist_ok=True)
        trips = round_trips(first_stage.to(device), list(files.values()), options.range, device, stated)
        for name, (score, pixels) in tqdm(zip(files, trips, strict=True), "round trips", len(files), unit="image"):
            found.append(score)
            if stated is not None and files[name].suffix.lower() != ".npy":
                numbers = stated.stored(pixels / 127.5 - 1)
                with atomic_path(made / f"{name}.tif") as path:
                    write_geotiff(path, numbers, place_of(files[name]), **of_file(stated))
            elif pixels.shape[2] == 3 and pixels.dtype == np.uint8:
                with atomic_path(made / f"{name}.png") as path:
                    Image.fromarray(pixels).save(path)
        finite = [score.psnr for score in found if np.isfinite(score.psnr)]
        report: dict[str, Any] = {
            "options": {key: str(value) for key, value in asdict(options).items()},
            "images": len(found),
            "PSNR": float(np.mean(finite)) if finite else None,  # none: nothing is lost
            "SSIM": float(np.mean([score.ssim for score in found])),
        }
        if recognized is not None:
            report["segmentor"] = recognized(made)
    report["by_image"] = {score.name: [round(score.psnr, 3), round(score.ssim, 4)] for score in found}
    write_json(report, options.out)
    return report

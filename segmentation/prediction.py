"""Prediction of masks for images that have none, written whole, so that a stopped run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from common.bands import Bands, Parts, read_bands_file, read_picture
from common.classes import far_apart_colors
from common.command import note
from common.devices import pick_device
from common.errors import InputError
from common.files import atomic_path, check_writable, digest, inside, only_writer, room_for, write_json
from common.images import IGNORE
from common.journal import Journal
from common.pairing import IMAGE_SUFFIXES, list_files, listed
from common.pixels import see_rgb
from common.ranks import Ranks
from common.rasters import has_rasterio, is_geotiff, place_of, write_geotiff
from common.schema import Schema, read_json
from common.segmentor_options import PredictOptions
from segmentation.bands import set_bands
from segmentation.classes import class_table
from segmentation.config import load_config
from segmentation.config_changes import set_data
from segmentation.inference import Prediction, Segmentor, from_views, load_segmentor, segment
from segmentation.labels import test_dataset
from segmentation.sureness import write_sureness
from segmentation.views import set_slide
from segmentation.windows import Predicted, Windows, predict_mask

STAMP = "prediction.json"


class Stamp(Schema):
    """``prediction.json``: what a folder of predictions was made from, by name of the option that decides it."""

    made_from: dict[str, str]


@dataclass(frozen=True)
class Outputs:
    """What is written for each image, beside its mask.

    Attributes:
        folder: with ``masks``, ``overlays`` and ``probabilities``.
        overlay: the image with the classes' colors over it (PNG).
        probabilities: float16 (C, H, W), ``.npy``.
        sure: least probability, 0..1, that a pixel's class has in the mask; others are to be ignored.
        rgb: bands that overlays show; None for those that are stated.
        windows: images are read by them, if given; then there is nothing but masks.
    """

    folder: Path
    overlay: bool = False
    probabilities: bool = False
    sure: float | None = None
    rgb: tuple[int, ...] | None = None
    windows: Windows | None = None

    def paths(self, name: str, image: Path) -> dict[str, Path]:
        """The files of an image; the mask of one that is a GeoTIFF is one, too."""
        suffix = ".tif" if has_rasterio() and is_geotiff(image) else ".png"
        paths = {"masks": self.folder / "masks" / f"{name}{suffix}"}
        if self.overlay:
            paths["overlays"] = self.folder / "overlays" / f"{name}.png"
        if self.probabilities:
            paths["probabilities"] = self.folder / "probabilities" / f"{name}.npy"
        return paths


def stamp_folder(folder: Path, made_from: dict[str, str]) -> None:
    """Says in a new folder what its predictions are made from.

    Raises:
        InputError: it holds those of other weights or settings.
    """
    path = folder / STAMP
    if not path.exists():
        write_json({"made_from": made_from}, path)
        return
    before = read_json(path, Stamp, "remove the folder, or name another").made_from
    if other := [name for name in {**before, **made_from} if before.get(name) != made_from.get(name)]:
        raise InputError(
            f"‹out› {folder}: holds predictions of another {' and '.join(sorted(other))}; name another folder"
        )


def class_colors(segmentor: Segmentor) -> NDArray[Any]:
    """Colors of the classes, (C, 3) uint8 RGB: the test set's, else far-apart ones."""
    dataset = test_dataset(segmentor.config)
    colors = class_table(dataset["classes"])["palette"] if dataset and "classes" in dataset else []
    if len(colors) != segmentor.num_classes:
        return far_apart_colors(segmentor.num_classes)
    return np.array(colors, dtype=np.uint8)


def predict(options: PredictOptions) -> int:
    """Predicts the images that are not done, and writes ``<out>/masks/<name>.png`` and what else is asked for.

    Returns:
        Number of images.

    Raises:
        InputError: a config, weights or an image that cannot be used; before the work where it can be known. ``out``
            holds predictions of other weights or settings.
    """
    config = load_config(options.config, options.cfg_options, options.trust_config)
    set_data(config, classes=None if options.classes is None else str(options.classes))
    if options.bands is not None:
        set_bands(config, read_bands_file(options.bands))
    if options.slide:
        set_slide(config, *options.slide)
    images, out, weights = images_of(options.images), options.out, str(options.load_from)
    if inside(out, options.images):
        raise InputError(f"‹out› {out}: lies inside {options.images}; name another one")
    segmentor = load_segmentor(config, weights, pick_device(options.device))
    if options.tta:
        segmentor = from_views(segmentor)
    made_from = {"config": segmentor.settings(), "checkpoint": digest(segmentor.weights)}
    if options.sure is not None:
        made_from["sure"] = str(options.sure)
    windows = None
    if options.window is not None:
        windows = Windows(options.window, options.overlap, options.batch_size)
        made_from["window and overlap"] = f"{options.window}, {options.overlap:g}"
    with room_for("‹out›", out):
        ranks = Ranks()
        check_writable(out, "‹out›")
        with ranks.first_holds(only_writer(out, "‹out›")):
            ranks.once(lambda: stamp_folder(out, made_from))
            if ranks.rank == 0:
                write_class_table(segmentor, out)
            asked = options.overlay, options.probabilities, options.sure, options.rgb
            outputs = Outputs(out, *asked, windows=windows)
            predict_images(segmentor, images, outputs, ranks, options.batch_size, options.num_workers)
    return len(images)


def images_of(path: Path) -> dict[str, Path]:
    """The images of a folder, or the one image, by name.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"‹images› {path}: is none of {', '.join(IMAGE_SUFFIXES)}")
        return {path.stem: path}
    return list_files(path, IMAGE_SUFFIXES, "‹images›")


def predict_images(
    segmentor: Segmentor,
    images: dict[str, Path],
    outputs: Outputs,
    ranks: Ranks,
    batch_size: int = 1,
    num_workers: int = 4,
) -> int:
    """Predicts each image that is not done.

    Args:
        segmentor: see ``inference.load_segmentor``.
        images: files by name.
        outputs: what to write.
        ranks: the processes that share the work.
        batch_size: images a batch.
        num_workers: processes that read images.

    Returns:
        Number of images that this process predicted.
    """
    journal = Journal(outputs.folder, "predicted", Predicted)

    def not_done() -> list[tuple[str, Path]]:
        done = journal.read()
        left = [
            (name, path)
            for name, path in images.items()
            if name not in done
            or done[name] != Predicted.of(name, path)
            or not all(file.is_file() for file in outputs.paths(name, path).values())
        ]
        if len(left) < len(images):
            note(f"{len(images) - len(left)} of {len(images)} images are done")
        look = segmentor.look if outputs.windows is None else partial(Parts, bands=segmentor.bands)
        check_images([path for _, path in left], look)
        return left

    # Of one list: a process that saw another (a file that is new, or done meanwhile) would count the rest otherwise.
    todo = ranks.share(ranks.once(not_done))
    stated = segmentor.bands
    bands = None if stated is None else stated.showing(outputs.rgb)
    items: list[tuple[Path, Path | None]] = [(path, None) for _, path in todo]
    batches = [range(start, min(start + batch_size, len(todo))) for start in range(0, len(todo), batch_size)]
    ids, colors = segmentor.rule.ids(), class_colors(segmentor)

    # programs that show maps leave out what is to be ignored, and show classes in their colors
    shown = np.zeros((256, 3), np.uint8)
    shown[ids[: len(colors)]] = colors
    look_of_masks: dict[str, Any] = {"nodata": float(ids[IGNORE]), "colors": shown, "ids": True}

    def done_with(name: str, path: Path) -> None:
        journal.append(Predicted.of(name, path), str(ranks.rank) if ranks.size > 1 else "")

    bar: dict[str, Any] = {"desc": "predict", "total": len(todo), "unit": "image", "disable": ranks.rank > 0}
    if outputs.windows is not None:
        for name, path in tqdm(todo, **bar):
            target = outputs.paths(name, path)["masks"]
            in_file = partial(_ids_of, ids, outputs.sure)
            predict_mask(segmentor, path, target, outputs.windows, in_file, look_of_masks)
            done_with(name, path)
    else:
        predictions = segment(segmentor, items, batches, num_workers)
        for prediction in tqdm(predictions, **bar):
            name, path = todo[prediction.index]
            mask = _ids_of(ids, outputs.sure, prediction)
            _write(outputs.paths(name, path), prediction, path, mask, colors, bands, look_of_masks)
            done_with(name, path)
    ranks.wait()
    if ranks.rank == 0:
        journal.merge()
        if outputs.sure is not None and outputs.windows is None:
            masks = (outputs.paths(name, path)["masks"] for name, path in images.items())
            note(write_sureness(masks, ids, segmentor.class_names, outputs.folder).line())
    return len(todo)


def check_images(paths: Sequence[Path], look: Callable[[Path], Any] = see_rgb) -> None:
    """Opens every image once, before the work.

    Args:
        paths: of the images.
        look: checks one.

    Raises:
        InputError: names the first ones that cannot be used.
    """

    def fault(path: Path) -> str:
        try:
            look(path)
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        faults = [
            line
            for line in tqdm(pool.map(fault, paths), "checking files", len(paths), unit="image", leave=False)
            if line
        ]
    if faults:
        raise InputError(listed(faults))


def _ids_of(ids: NDArray[Any], sure: float | None, prediction: Prediction) -> NDArray[Any]:
    found: NDArray[Any] = ids[sure_classes(prediction, sure)]
    return found


def sure_classes(prediction: Prediction, sure: float | None) -> NDArray[Any]:
    """Classes that were decided for, uint8 (H, W); 255 where their probability is below ``sure``, if that is given."""
    if sure is None:
        return prediction.classes
    classes = np.minimum(prediction.classes, len(prediction.logits) - 1)  # 255 stays so, where there are no data
    chosen = torch.from_numpy(classes.astype(np.int64)).to(prediction.logits.device)
    probability = prediction.logits.float().softmax(0).gather(0, chosen[None])[0].cpu().numpy()  # (H, W)
    return np.where(probability >= sure, prediction.classes, np.uint8(IGNORE))


def _write(
    paths: dict[str, Path],
    prediction: Prediction,
    image: Path,
    mask: NDArray[Any],
    colors: NDArray[Any],
    bands: Bands | None,
    look_of_masks: dict[str, Any],
) -> None:
    def write_mask(path: Path) -> None:
        if path.suffix == ".tif":
            write_geotiff(path, mask[..., None], place_of(image), **look_of_masks)
        else:
            Image.fromarray(mask).save(path)

    def write_overlay(path: Path) -> None:
        Image.fromarray(painted(read_picture(image, bands), prediction.classes, colors)).save(path)

    writers: dict[str, Callable[[Path], Any]] = {
        "masks": write_mask,
        "overlays": write_overlay,
        "probabilities": lambda path: np.save(path, _probabilities(prediction.logits)),
    }
    for kind, path in paths.items():
        with atomic_path(path) as temporary:
            writers[kind](temporary)


def _probabilities(logits: torch.Tensor) -> NDArray[Any]:
    return logits.float().softmax(0).cpu().numpy().astype(np.float16)


def painted(image: NDArray[Any], classes: NDArray[Any], colors: NDArray[Any]) -> NDArray[Any]:
    """An image (H, W, 3) under its classes' colors, half and half, and the borders of classes in full.

    Args:
        image: uint8 RGB.
        classes: ids, uint8 (H, W); 255 is left as it is.
        colors: (C, 3) uint8.
    """
    known = classes < len(colors)
    paint = colors[np.where(known, classes, 0)].astype(np.uint16)
    mixed = ((image.astype(np.uint16) + paint) // 2).astype(np.uint8)
    border = np.zeros(classes.shape, bool)
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[1:] |= classes[1:] != classes[:-1]
    mixed[border] = paint[border].astype(np.uint8)
    return np.where(known[..., None], mixed, image)


def write_class_table(segmentor: Segmentor, folder: Path) -> None:
    """``classes.json``: names and colors of what the masks hold, for other commands' ``--classes``."""
    rule, n = segmentor.rule, segmentor.num_classes
    ids = rule.ids()
    values, ignore = ids[:n].tolist(), int(ids[IGNORE])
    table = {"classes": segmentor.class_names, "palette": class_colors(segmentor).tolist(), "ignore_index": ignore}
    if values != list(range(n)):
        ignored = [id_ for id_ in np.flatnonzero(rule.table == IGNORE).tolist() if id_ != ignore]
        if len({*values, *ignored, ignore}) < n + len(ignored) + 1:
            return  # no id in masks stands for some class: a table cannot say so
        table |= {"mask_values": values, "mask_ignore": ignored}
    write_json(table, folder / "classes.json", indent=None)

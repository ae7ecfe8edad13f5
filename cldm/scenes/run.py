"""A large scene from mask to file: checked, prepared, denoised, decoded, written; each in parts, resumable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from tqdm import tqdm

from cldm.build import create_model, load_config
from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.data.hints import HintEncoder
from cldm.data.pairs import fitted
from cldm.scenes.noise import fill_with_noise
from cldm.scenes.options import SceneOptions
from cldm.scenes.record import SceneRecord, refuse_other
from cldm.scenes.sampling import Windows, decode, denoise
from cldm.scenes.writing import write_scene
from cldm.synthesis.candidates import noise_seed
from cldm.synthesis.folder import identity
from cldm.synthesis.formats import has_no_map
from cldm.synthesis.guiding import few_steps, guidance_of
from cldm.synthesis.prompts import read_long_prompts, reading
from cldm.synthesis.run import HALF, memory_for
from common.bands import read_pixels
from common.classes import ClassTable, load_class_table
from common.command import note
from common.decoding import ImageError, stored_size
from common.devices import pick_device
from common.errors import InputError
from common.files import atomic_path, check_writable, file_hash, only_writer_of, room_for, write_json
from common.images import pixels_of_ids, read_mask_in_strips
from common.pairing import refuse_doubtful_ids
from common.processes import signals_held
from common.rasters import require_rasterio
from common.schema import read_json
from common.trust import trust
from common.windows import Grid, grid, tiles
from common.work import Array, Progress, Work
from ldm.models.schedule import make_scheduler, set_time_steps, spacing_of

_STRIP = 512  # rows of the mask that are read at once
WINDOW = 64  # latent pixels, where a configuration does not say what the model was trained at


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene that is to be painted.

    Attributes:
        options: how.
        model: with weights, on its device.
        size: of the mask (height, width), in pixels.
        padded: the same, in whole multiples of what the model takes; what is added is the mask's last row and column,
            and is cut off the image.
        window: height and width of a window, in pixels.
        table: of the classes; None where any ids are taken.
        encode: masks -> hints.
    """

    options: SceneOptions
    model: ControlLDM
    size: tuple[int, int]
    padded: tuple[int, int]
    window: tuple[int, int]
    table: ClassTable | None
    encode: HintEncoder

    @property
    def name(self) -> str:
        """Of the image, as a synthesis names it."""
        return f"{self.options.mask.stem}_seed_{self.options.seed}"

    @property
    def kept(self) -> Path:
        """The file of its record, beside the image."""
        return self.options.file.with_name(f"{self.options.file.name}.json")

    @cached_property
    def seed(self) -> int:
        """Of all that is drawn."""
        return noise_seed(self.options.seed, self.options.mask.stem)

    def _latent(self, pixels: tuple[int, int]) -> tuple[int, int]:
        return pixels[0] // self.model.factor, pixels[1] // self.model.factor

    @cached_property
    def grid(self) -> Grid:
        """The windows whose predictions are blended."""
        return grid(self._latent(self.padded), self._latent(self.window), self.options.overlap)

    @cached_property
    def tiles(self) -> Grid:
        """The tiles that the latent is decoded in."""
        return tiles(self._latent(self.padded), self._latent(self.window), self.model.factor)

    @cached_property
    def work(self) -> Work[SceneRecord]:
        """Its files."""
        latent = Array((self.model.channels, *self._latent(self.padded)), "float32")
        bands = self.model.bands
        kind = (3, "uint8") if bands is None else (bands.count, bands.dtype)
        mask, image = Array(self.padded, "uint8"), Array((*self.size, kind[0]), kind[1])
        output = Array((image.bytes * 3 // 2 + 2**20,), "uint8")  # for the file, with overviews: freed before
        arrays = {"mask": mask, "latent0": latent, "latent1": latent, "image": image, "output": output}
        return Work(self.options.file, arrays, SceneRecord)


def open_scene(options: SceneOptions) -> Scene:
    """Builds the model, and checks what can be known without work.

    Raises:
        InputError: anything that does not fit.
    """
    trust(options.trust)
    device, shape = pick_device(options.device), stored_size(options.mask)
    if shape is None:
        raise ImageError.of(options.mask, "is no picture that can be read; give a mask of class ids")
    over: dict[str, Any] = {} if options.classes is None else {"classes": options.classes}
    model = create_model(options.config, options.ckpt, options.allow_mismatch, use_ema=options.use_ema, **over)
    if model.fuses == (options.reference is None):
        needs = "reads a reference; name one" if model.fuses else "reads no reference; leave it out"
        raise InputError(f"‹reference›: the model of {options.config} {needs}")
    if options.long_prompts:
        read_long_prompts(model)
    classes = options.classes or model.classes
    table = None if classes is None else load_class_table(classes, model.hint_encoding == "table")
    encode = HintEncoder(model.hint_encoding, table)
    encode.check_channels(model.control_model.hint_channels, str(options.mask))
    height, width = shape[::-1]
    multiple = model.multiple
    padded = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    window = window_of(options, model)
    window = (min(window[0], padded[0]), min(window[1], padded[1]))
    guidance_of(model, options.sampling)  # refused before the work
    check_format(options, model)
    model.to(device, HALF.get(options.precision, torch.float32)).accelerate()
    return Scene(options, model, (height, width), padded, window, table, encode)


def check_format(options: SceneOptions, model: ControlLDM) -> None:
    """Refuses a file that could not be written.

    Raises:
        InputError: a GeoTIFF without rasterio or a map, or a picture of what is no picture.
    """
    if options.file.suffix.lower() in (".tif", ".tiff"):
        require_rasterio(f"‹out› {options.file}: would be a GeoTIFF, or name a .png")
        if has_no_map(str(options.mask)):
            raise InputError(
                f"{options.mask}: has a place but no CRS, which its GeoTIFF would need; write the mask again with one, "
                "or name a .png by ‹out›"
            )
    elif model.bands is not None:
        raise InputError(
            f"‹out› {options.file}: bands are stated of the model's images, which no picture holds; name a .tif"
        )


def window_of(options: SceneOptions, model: ControlLDM) -> tuple[int, int]:
    """Height and width of a window in pixels.

    Raises:
        InputError: no multiple of what the model takes.
    """
    if options.window is not None:
        sides = options.window * (3 - len(options.window))
        if any(side % model.multiple for side in sides):
            shown = " ".join(map(str, options.window))
            raise InputError(f"‹window› {shown}: must be a multiple of {model.multiple} px")
        return sides[0], sides[1]
    config = load_config(options.config, options.classes)
    said = (OmegaConf.select(config, f"data.params.train.params.{name}") for name in ("crop", "size"))
    trained_at = next((size for size in said if size is not None), WINDOW * model.factor)
    height, width = (trained_at, trained_at) if isinstance(trained_at, int) else trained_at
    return height, width


def record_of(scene: Scene) -> SceneRecord:
    """What is said of the scene beside its image, and compared when its making goes on."""
    options, model = scene.options, scene.model
    reference, kind = options.reference, options.file.suffix.lower().lstrip(".")
    return SceneRecord(
        name=scene.name,
        seed=options.seed,
        prompt=options.prompt,
        prompt_read=reading(model, options.prompt).read,
        mask=str(options.mask),
        mask_hash=file_hash(options.mask),
        reference=None if reference is None else str(reference),
        reference_hash=None if reference is None else file_hash(reference),
        reference_fit=options.reference_fit,
        reference_latent=options.reference_latent,
        hint_encoding=scene.encode.fingerprint,
        height=scene.size[0],
        width=scene.size[1],
        format=kind,
        quality=options.quality if kind in ("jpg", "jpeg") else None,
        bands=None if model.bands is None else model.bands.model_dump(exclude_defaults=True),
        sampler="ddim",
        steps=options.steps,
        spacing=spacing_of(options.spacing, options.steps, model.zero_terminal_snr),
        scale=options.scale,
        mask_scale=options.mask_scale,
        reference_scale=options.reference_scale,
        guidance_rescale=options.guidance_rescale if options.sampling.guided else 0.0,
        eta=0.0,
        precision=options.precision,
        window=list(scene.window),
        overlap=options.overlap,
        **identity(options.config, options.ckpt, options.use_ema, options.classes),
    )


def mask_strips(scene: Scene) -> Iterator[tuple[int, NDArray[Any]]]:
    """Strips of the scene's mask: the first row, and ids as the file has them (rows, W) uint8."""
    labels = None if scene.table is None else scene.table.labels
    return read_mask_in_strips(scene.options.mask, labels, _STRIP)


def check_scene_mask(scene: Scene) -> None:
    """Reads the mask once, strip by strip.

    Raises:
        InputError: a mask that cannot be used.
    """
    mask, pixels = scene.options.mask, np.zeros(256, dtype=np.int64)
    for _, ids in mask_strips(scene):
        pixels += pixels_of_ids(ids)
    if scene.table is not None:
        refuse_doubtful_ids(scene.table.labels, [(mask, pixels)], str(mask))
        if wrong := scene.table.labels.wrong_ids(pixels):
            raise ImageError.of(mask, wrong)


def conditions(scene: Scene) -> Conditions:
    """What all windows have in common, as a batch of one: reference, fitted to a window, and text.

    Raises:
        InputError: a reference that cannot be used.
    """
    model, options = scene.model, scene.options
    batch: dict[str, Any] = {model.cond_stage_key: [options.prompt], model.control_key: torch.empty(1, 0)}
    if options.reference is not None:
        pixels = read_pixels(options.reference, model.bands).values
        image = fitted(pixels, scene.window, options.reference_fit, Image.Resampling.BICUBIC)
        batch[model.ssl_control_key] = image[None].to(model.device)
    with torch.inference_mode():
        return model.conditions(batch, [scene.seed] if options.reference_latent == "sample" else None)


def prepare(scene: Scene) -> Progress:
    """Writes mask and noise into the work's files."""
    mask, latent = scene.work.open("mask"), scene.work.open("latent0")
    height, width = scene.size
    table = None if scene.table is None else scene.table.labels.table
    for top, ids in mask_strips(scene):
        mask[top : top + len(ids), :width] = ids if table is None else table[ids].astype(np.uint8)
    mask[height:, :width] = mask[height - 1, :width]
    mask[:, width:] = mask[:, width - 1 : width]
    fill_with_noise(latent, scene.seed, HALF.get(scene.options.precision, torch.float32))
    for array in (mask, latent):
        array.flush()
    scene.work.save(progress := Progress())
    return progress


def refuse_no_room(scene: Scene) -> None:
    """Refuses a scene that the disk does not hold.

    Raises:
        InputError: says how much is lacking.
    """
    needed, free = scene.work.room()
    if needed > free:
        raise InputError(
            f"‹out› {scene.options.file}: a scene of {scene.size[1]} x {scene.size[0]} px takes up to "
            f"{needed / 1e9:,.1f} GB more there while it is made, and {free / 1e9:,.1f} GB are free; make room, or "
            "name another disk"
        )


def is_made(scene: Scene, record: SceneRecord) -> bool:
    """Whether the image is there, made as asked, and is not to be made again.

    Raises:
        InputError: it is there, made otherwise.
    """
    out = scene.options.file
    if not out.exists() or scene.options.remake:
        return False
    remedy = "make it again by ‹remake›, or name another file"
    if not scene.kept.exists():
        raise InputError(f"‹out› {out}: is there, and {scene.kept.name}, which would say what of, is not; {remedy}")
    refuse_other(read_json(scene.kept, SceneRecord, remedy), record, f"‹out› {out}:", remedy)
    note(f"{out} is there, made as asked", sys.stdout)
    return True


def is_fresh(scene: Scene, record: SceneRecord) -> bool:
    """Whether nothing of the scene is painted, or not so far that it could go on.

    Raises:
        InputError: another one is under way there.
    """
    if (begun := scene.work.begun()) is not None:
        remedy = f"remove {scene.work.folder}, or name another file"
        refuse_other(begun, record, f"‹out› {scene.options.file}: the scene that is under way", remedy)
    return begun is None or scene.work.progress() is None


def paint_scene(options: SceneOptions) -> bool:
    """Paints a scene of any size, or goes on with it.

    Everything is checked before the first window. A stopped run (SIGTERM, Ctrl-C, a kill) goes on with the row of
    windows at which it was; the image is the same as without the stop.

    Args:
        options: what, of what, and where to.

    Returns:
        whether the image was made; False with ``dry_run``, and where it is there, made as asked.

    Raises:
        InputError: anything the work would trip over, or what is there was made otherwise.
    """
    scene = open_scene(options)
    out, record = options.file, record_of(scene)
    if is_made(scene, record):
        if scene.work.folder.is_dir() and not options.dry_run:
            with only_writer_of(out.absolute(), "‹out›"):  # another command may be making it again
                scene.work.remove()  # what a kill may have left
        return False
    fresh = is_fresh(scene, record)
    refuse_no_room(scene)
    check_writable(out.absolute().parent, "‹out›")
    windows, cond = scene.grid, conditions(scene)
    if fresh:
        check_scene_mask(scene)
    for line in few_steps(scene.model, options.sampling):
        note(line, sys.stdout)
    note(
        f"{scene.size[1]} x {scene.size[0]} px: {len(windows.columns)} x {len(windows.rows)} windows of "
        f"{scene.window[1]} x {scene.window[0]} px, {options.steps} steps",
        sys.stdout,
    )
    if options.dry_run:
        return False
    with only_writer_of(out.absolute(), "‹out›"), room_for("‹out›", out), memory_for(options.batch_size, "‹window›"):
        if is_made(scene, record):  # by another command, meanwhile
            return False
        fresh = is_fresh(scene, record)  # the same: it may have gone on, or have ended
        with signals_held() as received:
            if not _made(scene, record, cond, fresh, lambda: bool(received)):
                note(f"stopped; start again to go on ({scene.work.folder})")
                return False  # the signal is obeyed at the end of the block
        with atomic_path(out) as path:
            scene.work.give_up("output")
            image = scene.work.open("image")
            write_scene(path, out.suffix, image, options.mask, scene.model.bands, options.quality)
            # before the image has its name: no image is without a record
            write_json(record.model_dump(exclude_unset=True), scene.kept)
        scene.work.remove()
    return True


def _made(scene: Scene, record: SceneRecord, cond: Conditions, fresh: bool, stopped: Callable[[], bool]) -> bool:
    """Makes the image in the work's files; False if it was stopped."""
    work, options = scene.work, scene.options
    if fresh:
        work.begin(record)
    progress = prepare(scene) if fresh else work.progress()
    assert progress is not None
    scheduler = make_scheduler("ddim", scene.model.betas.cpu(), scene.model.parameterization, record.spacing or "")
    set_time_steps(scheduler, options.steps)
    windows = Windows(scene.model, cond, work.open("mask"), scene.encode, scene.grid, options.sampling)
    passes = [scene.grid] * options.steps + [scene.tiles]
    total = sum(of_pass.count for of_pass in passes)
    done = sum(of_pass.count for of_pass in passes[: progress.step])
    if progress.step < len(passes):
        done += progress.row * len(passes[progress.step].columns)
    with tqdm(total=total, initial=done, desc=scene.name, unit="window") as bar:
        if progress.step < options.steps:
            reached = denoise(windows, scheduler, work, progress, bar, stopped)
            if reached is None:
                return False
            progress = reached
        if progress.step == options.steps:
            return decode(scene.model, scene.tiles, work, progress, options.batch_size, bar, stopped) is not None
    return True

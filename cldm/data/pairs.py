"""Items as tensors: mask, image or reference, prompt, and the seed that all of an item's random choices come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from cldm.data.choices import REFERENCE_FITS, REFERENCE_FROM
from cldm.data.hints import HintEncoder
from cldm.data.manifest import Item, read_manifest
from cldm.data.reference import ReferenceAugmentation, recolor
from common.bands import Bands, bands_of, read_pixels
from common.classes import load_class_table
from common.errors import InputError
from common.files import digest
from common.images import IGNORE, ImageError, read_mask
from common.pictures import Box, resized
from common.pixels import Pixels as FilePixels
from common.rng import Stream, seed_from

_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Pixels:
    """An item's pixels in an epoch.

    Attributes:
        mask: class ids (H, W) uint8.
        valid: (H, W) bool, where the image has data.
        image: (bands, H, W) in [-1, 1].
        reference: alike.
    """

    mask: NDArray[Any]
    valid: NDArray[np.bool_]
    image: torch.Tensor
    reference: torch.Tensor


class PairedImages(Dataset[dict[str, Any]]):
    """Masks with their images (training), or with reference images from elsewhere (synthesis).

    ``dataset[i]`` is item i in epoch 0, ``dataset[epoch, i]`` in any epoch. Flip, augmentation and what is dropped
    follow from (``seed``, epoch, item's name) alone: not from batch, worker, device or what was read before.

    An item is a dict of

    * ``hint``: (C, H, W) float32 in [0, 1], the encoded mask;
    * ``jpg``: (bands, H, W) float32 in [-1, 1], the image; absent with ``use_reference``;
    * ``ssl``: (bands, H, W) float32 in [-1, 1], the augmented image, or the item's reference with ``use_reference``;
    * ``txt``: prompt; ``name``: stem of the mask's file, or else of the image's; ``seed``: 63-bit int, for time step
      and noise;
    * ``reference_given``: float32, 0 where training hides the reference (its latent is then zero), else 1; with
      ``drop_reference_p`` only;
    * ``valid``: (1, H, W) bool, where the image has data (the mask is to be ignored elsewhere); of training, with
      ``bands`` or where images are TIFFs;
    * ``start``: as ``jpg``, the item's own image, which is painted over; with ``start_image`` only;
    * ``mask_path``, ``reference_path``, ``start_path``: with what they are the files of, and the first of a synthesis.

    Args:
        data_root: folder that the list's paths are relative to.
        txt_file: list of items as JSON lines.
        size: side, or (height, width), to resize to, in pixels; None keeps each file's size.
        flip_p: probability of a left-right flip of mask and image.
        hint_encoding: ``index``, ``palette`` or ``onehot``.
        classes: name or file of a class table; masks are then checked against it.
        augmentation: parameters of ``ReferenceAugmentation``; None or empty are the published ones.
        empty_prompt_p: probability of an empty prompt, for classifier-free guidance.
        seed: seed of all random choices.
        skip_invalid: leave faulty items out (``faults`` lists them) instead of raising.
        use_reference: items name their reference (``ref_image``), and their image is not read.
        validate: open and check every file now; False checks the list alone.
        interpolation: of images: nearest, bilinear, bicubic or lanczos. Masks are always nearest.
        multiple_of: height and width must be multiples of this many pixels.
        follow_links: links below the data root may lead to files outside it.
        masks_only: neither image nor reference is read: for synthesis by a model without a reference branch.
        reference_fit: how a reference of another shape than its mask's gets that shape: ``crop`` keeps the middle,
            ``stretch`` everything, distorted (as published).
        drop_mask_p: share of items whose mask is hidden: all its pixels are to be ignored.
        drop_reference_p: share of items whose reference is hidden.
        unlabeled: take items without ``source``: images without a mask, whose pixels are all to be ignored.
        shared_color: how strongly colors and light of an image change before its reference is made of it, in [0, 1],
            see ``recolor``: the image has the reference's, whatever its classes usually have.
        crop: side in pixels of the square that is seen of an image (after ``size``), another one in each epoch: with
            ``size`` None, at the files' own scale. None sees everything.
        quarter_turns: crops are turned by 0 to 3 quarters at random: from above there is no up.
        reference_from: what a crop's reference is made of: the same ``crop``, or ``elsewhere`` in the same image, as a
            reference at synthesis shows another place.
        bands: what is stated of the images' bands, see ``common.bands.Bands``; None for three of 8 bits.
        several_maps: masks and images need not share one coordinate reference system.
        start_image: items name their own image, too, beside their reference if they have one: it is painted over.

    Raises:
        InputError: a faulty list or parameter.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        txt_file: str | os.PathLike[str],
        size: int | Sequence[int] | None = None,
        flip_p: float = 0.0,
        hint_encoding: str = "index",
        classes: str | None = None,
        augmentation: Mapping[str, Any] | None = None,
        empty_prompt_p: float = 0.0,
        seed: int = 0,
        skip_invalid: bool = False,
        use_reference: bool = False,
        validate: bool = True,
        interpolation: str = "bicubic",
        multiple_of: int = 64,
        follow_links: bool = False,
        reference_fit: str = "crop",
        masks_only: bool = False,
        drop_mask_p: float = 0.0,
        drop_reference_p: float = 0.0,
        unlabeled: bool = False,
        shared_color: float = 0.0,
        crop: int | None = None,
        quarter_turns: bool = False,
        reference_from: str = "crop",
        bands: Bands | Mapping[str, Any] | None = None,
        several_maps: bool = False,
        *,  # of the command alone, no setting of a YAML file
        start_image: bool = False,
    ) -> None:
        if reference_fit not in REFERENCE_FITS:
            raise InputError(f"reference_fit {reference_fit}: must be one of {', '.join(REFERENCE_FITS)}")
        self.reference_fit = reference_fit
        if interpolation not in _INTERPOLATION:
            raise InputError(f"interpolation {interpolation}: must be one of {', '.join(_INTERPOLATION)}")
        shares = {"flip_p": flip_p, "empty_prompt_p": empty_prompt_p}
        shares |= {"drop_mask_p": drop_mask_p, "drop_reference_p": drop_reference_p}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} {value}: must be a probability in 0..1")
        if not 0 <= shared_color <= 1:
            raise InputError(f"shared_color {shared_color}: must be a strength in 0..1")
        self.size, self.list_file = _height_and_width(size), str(txt_file)
        self.crop, self.quarter_turns, self.reference_from = crop, quarter_turns, reference_from
        if crop is None and (quarter_turns or reference_from != "crop"):
            raise InputError("crop: quarter_turns and reference_from are of crops; give crop the side of a square")
        if reference_from not in REFERENCE_FROM:
            raise InputError(f"reference_from {reference_from}: must be one of {', '.join(REFERENCE_FROM)}")
        if crop is not None and (use_reference or masks_only):
            raise InputError(f"crop {crop}: is of training; a synthesis paints whole masks")
        self.flip_p, self.empty_prompt_p = flip_p, empty_prompt_p
        self.drop_mask_p, self.drop_reference_p = drop_mask_p, drop_reference_p
        self.shared_color = shared_color
        self.seed = seed
        self.bands = bands_of(bands)
        if start_image and not (use_reference or masks_only):
            raise InputError("start_image: is of a synthesis; a training reads its images anyway")
        self.start_image = start_image
        self.use_reference, self.masks_only = use_reference and not masks_only, masks_only
        self.class_table = None if classes is None else load_class_table(classes, hint_encoding == "table")
        self.hint_encoding = hint_encoding
        self._encode = HintEncoder(hint_encoding, self.class_table)
        self.hint_channels, self.hint_fingerprint = self._encode.channels, self._encode.fingerprint
        self._augment = ReferenceAugmentation(**(augmentation or {}))
        self._resample = _INTERPOLATION[interpolation]
        self.items, self.faults = read_manifest(
            txt_file,
            data_root,
            classes=self.class_table,
            need_image=self.start_image or not (use_reference or masks_only),
            painted=use_reference or masks_only,
            need_mask=not unlabeled or use_reference or masks_only,
            need_reference=self.use_reference,
            skip_invalid=skip_invalid,
            size=self.size,
            multiple_of=multiple_of,
            crop=crop,
            progress=os.environ.get("LOCAL_RANK", "0") == "0",
            check_files=validate,
            follow_links=follow_links,
            bands=self.bands,
            several_maps=several_maps,
        )
        # told by names alone, so that all items of a batch have the same fields
        self.has_gaps = self.bands is not None or any(
            item.image is not None and item.image.suffix.lower() in (".tif", ".tiff") for item in self.items
        )

    def __len__(self) -> int:
        return len(self.items)

    def check_hints(self, read: int, name: str = "the list") -> None:
        """Refuses a mask branch that does not read these hints.

        Args:
            read: channels that it reads.
            name: of this data set, for the message.

        Raises:
            InputError: hints have another number of channels.
        """
        self._encode.check_channels(read, name)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """The item at ``index``, or at (epoch, ``index``)."""
        epoch, position = index if isinstance(index, tuple) else (0, index)
        if not (self.masks_only or self.use_reference):
            pixels = self.pixels(epoch, position)
            gaps = {"valid": torch.from_numpy(np.array(pixels.valid))[None]} if self.has_gaps else {}
            described = self.described(epoch, position, pixels.mask)
            return {"jpg": pixels.image, "ssl": pixels.reference, **gaps, **described}

        item = self.items[position]
        mask = resized(self._mask(item), self.size, Image.Resampling.NEAREST)
        begun: dict[str, Any] = {}
        flipped = not self.masks_only and self._choices(epoch, item)[0]
        if self.start_image:
            image = resized(self._image(item, "image").values, mask.shape, self._resample)
            begun = {"start": _to_tensor(image[:, ::-1] if flipped else image), "start_path": str(item.image)}
        if self.masks_only:
            return {"mask_path": str(item.mask), **begun, **self.described(epoch, position, mask)}
        reference = self._image(item, "reference").values
        if flipped:
            mask = mask[:, ::-1]
        paths = {"mask_path": str(item.mask), "reference_path": str(item.reference)}
        shown = fitted(reference, mask.shape, self.reference_fit, self._resample)
        return {"ssl": shown, **paths, **begun, **self.described(epoch, position, mask)}

    def _choices(self, epoch: int, item: Item) -> NDArray[np.bool_]:
        """Flip, empty prompt, hidden mask, hidden reference: whether, of an item in an epoch."""
        draws = np.random.default_rng(seed_from(self.seed, epoch, item.name)).random(4)
        return draws < (self.flip_p, self.empty_prompt_p, self.drop_mask_p, self.drop_reference_p)

    def pixels(self, epoch: int, position: int) -> Pixels:
        """An item of training, changed as in an epoch."""
        item = self.items[position]
        seed = seed_from(self.seed, epoch, item.name)
        mask = resized(self._mask(item), self.size, Image.Resampling.NEAREST)
        stored = self._image(item, "image")
        image = resized(stored.values, mask.shape, self._resample)
        valid = resized(stored.valid, mask.shape, Image.Resampling.NEAREST)
        mask = np.where(valid, mask, IGNORE).astype(np.uint8)
        if self._choices(epoch, item)[0]:
            mask, valid, image = mask[:, ::-1], valid[:, ::-1], np.ascontiguousarray(image[:, ::-1])
        if self.shared_color:
            rng = np.random.default_rng(seed_from(seed, Stream.SHARED_COLOR))
            image = recolor(image, rng, self.shared_color)
        shown = image  # what the reference is made of
        if self.crop is not None:
            draw = np.random.default_rng(seed_from(seed, Stream.ITEM_CROP))
            here, elsewhere = (draw.integers([side - self.crop + 1 for side in mask.shape]).tolist() for _ in range(2))
            turns = draw.integers(4, size=2) if self.quarter_turns else (0, 0)
            shown = _cut(image, elsewhere if self.reference_from == "elsewhere" else here, self.crop, turns[1])
            mask, valid, image = (_cut(pixels, here, self.crop, turns[0]) for pixels in (mask, valid, image))
        reference = self._augment(shown, seed_from(seed, Stream.AUGMENTATION))
        return Pixels(mask, valid, _to_tensor(image), _to_tensor(reference))

    def described(self, epoch: int, position: int, mask: NDArray[Any]) -> dict[str, Any]:
        """What an item has beside images, in an epoch: hint of a mask (H, W) of class ids, text, name, seed."""
        item = self.items[position]
        _, empty, no_mask, no_reference = self._choices(epoch, item)
        sample: dict[str, Any] = {
            "hint": self._encode(np.full_like(mask, IGNORE) if no_mask else mask),
            "txt": "" if empty else item.prompt,
            "name": item.name,
            "seed": seed_from(self.seed, epoch, item.name),
        }
        if self.drop_reference_p:
            sample["reference_given"] = np.float32(not no_reference)
        return sample

    @property
    def pixel_settings(self) -> dict[str, Any]:
        """All that ``pixels`` depends on beside the files, as JSON can hold it."""
        ids = None if self.class_table is None else self.class_table.labels.table.tolist()
        return {
            "size": self.size,
            "flip_p": self.flip_p,
            "seed": self.seed,
            "interpolation": self._resample.name,
            "augmentation": self._augment.parameters,
            "shared_color": self.shared_color,
            "crop": self.crop,
            "quarter_turns": self.quarter_turns,
            "reference_from": self.reference_from,
            "class ids": digest(ids)[:16],
            **({} if self.bands is None else {"bands": self.bands.model_dump()}),
        }

    def _image(self, item: Item, kind: str) -> FilePixels:
        """An item's image or reference, as stored."""
        return _load(lambda path: read_pixels(path, self.bands), item, kind)

    def _mask(self, item: Item) -> NDArray[Any]:
        """Class ids (H, W), uint8; of an image without a mask, 255 all over."""
        if item.mask is None:
            return np.full(item.size or self._image(item, "image").values.shape[:2], IGNORE, np.uint8)
        return _load(read_mask if self.class_table is None else self.class_table.labels.read, item, "mask")


def _height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise InputError(f"size {size}: must be a side in pixels or [height, width]")
    return sides[0], sides[1]


def _load(read: Any, item: Item, kind: str) -> Any:
    path = getattr(item, kind)
    try:
        return read(path)
    except ImageError as error:  # the file has changed since it was checked, or was not checked
        raise InputError(f"{path} (line {item.line} of the list): {error.reason}") from error


def _cut(pixels: NDArray[Any], corner: NDArray[Any], side: int, turns: int) -> NDArray[Any]:
    """A square of (H, W) or (H, W, 3) from its upper left corner (row, column), turned by quarters."""
    top, left = corner
    return np.ascontiguousarray(np.rot90(pixels[top : top + side, left : left + side], turns))


def middle(shape: tuple[int, ...], aspect: tuple[int, ...]) -> Box | None:
    """The largest centered part of an image (H, W) of the aspect ratio of another (H', W'); None for the whole."""
    (height, width), (other_height, other_width) = shape, aspect
    if height * other_width == width * other_height:
        return None
    scale = min(height / other_height, width / other_width)
    part_height, part_width = min(scale * other_height, height), min(scale * other_width, width)
    # from a whole pixel on, so that a part that already has its size is not blurred by half a pixel
    top, left = (height - part_height) // 2, (width - part_width) // 2
    return left, top, left + part_width, top + part_height


def fitted(pixels: NDArray[Any], shape: tuple[int, ...], how: str, resample: Image.Resampling) -> torch.Tensor:
    """A reference (H, W, bands), in 0..255, as the model reads it: (bands, *shape) float32 in [-1, 1].

    Args:
        pixels: of the reference.
        shape: of its mask.
        how: ``crop`` keeps the middle, ``stretch`` everything, distorted.
        resample: filter.
    """
    box = middle(pixels.shape[:2], shape) if how == "crop" else None
    return _to_tensor(resized(pixels, shape, resample, box))


def _to_tensor(image: NDArray[Any]) -> torch.Tensor:
    """(H, W, bands) in 0..255 -> (bands, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).div_(127.5).sub_(1).contiguous()

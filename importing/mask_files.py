"""Masks that are picture files: ids, colors, or a JPEG of either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.classes import ClassTable
from common.decoding import ImageError, decode
from common.images import IGNORE
from importing.ringing import REACH, without_ringing
from importing.source import Size

JPEGS = (".jpg", ".jpeg")
_AREA_OF_COLOR = 24.0  # distance in RGB that compression leaves in an area of one color
_SHOWN = 5
_MOST_COLORS = 1 << 16


def is_jpeg(path: Path) -> bool:
    """Whether a file is a JPEG by its name."""
    return path.suffix.lower() in JPEGS


def pixels_of(path: Path) -> NDArray[Any]:
    """A mask file as it looks: (H, W) gray, or (H, W, 3) where it has colors, of a palette, too; uint8.

    Raises:
        ImageError: unreadable, of more than 8 bits, or with pixels that are not opaque.
    """
    picture = decode(path)
    image = picture.image
    if picture.bits > 8 or image.mode.startswith(("I", "F")):
        raise ImageError.of(path, "has more than 8 bits a channel; a mask in colors has 8")
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    if "A" in image.getbands() and image.getchannel("A").getextrema() != (255, 255):  # else black
        raise ImageError.of(path, "has transparent pixels; write them in a color that is to be ignored")
    colors = np.asarray(image.convert("RGB"))
    return colors[..., 0] if image.mode != "P" and (colors == colors[..., :1]).all() else colors


def packed(colors: NDArray[Any]) -> NDArray[Any]:
    """Colors (..., 3) as numbers, int32."""
    values = colors.astype(np.int32)
    return values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]


@dataclass(frozen=True)
class MaskFile:
    """A mask in a file of its own.

    Attributes:
        path: the file.
        table: what it may hold.
        by_color: it is read by its colors, a palette's, too; else it holds ids.
        tolerance: distance in RGB up to which a color counts as a class's.
    """

    path: Path
    table: ClassTable
    by_color: bool = False
    tolerance: float = 0.0

    def read(self, size: Size, notes: list[str]) -> NDArray[Any]:
        """See ``Mask.read``."""
        if is_jpeg(self.path):
            ids = self._without_ringing(notes)
        else:
            by_palette = not self.by_color and self._palette_has_another_order()
            if by_palette:
                notes.append(f"{self.path}: is read by its palette's colors, whose order is not that of the classes")
            ids = self._by_color() if self.by_color or by_palette else self.table.labels.read(self.path)
        if ids.shape != size:
            raise ImageError.of(
                self.path,
                f"is {ids.shape[1]} x {ids.shape[0]} px, its image {size[1]} x {size[0]} (width x height); they must "
                "agree",
            )
        return ids

    def _palette_has_another_order(self) -> bool:
        """Whether a palette PNG shows colors of the classes alone, and its indices are other classes.

        A program that turns pictures into palettes numbers colors as it likes; then these are what was meant.
        """
        if not self.table.labels.colors or self.path.suffix.lower() not in (".png", ".gif", ".bmp"):
            return False
        image = decode(self.path).image
        if image.mode != "P":
            return False
        used = np.unique(np.asarray(image)).tolist()
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        known = {color[:3]: int(self.table.labels.table[color[3]]) for color in self.table.labels.colors}
        by_index = [int(self.table.labels.table[index]) for index in used]
        if max(used) >= len(palette) or IGNORE in by_index:  # an index to ignore is no program's own choice
            return False
        by_color = [known.get(tuple(palette[index].tolist())) for index in used]
        return None not in by_color and by_color != by_index

    def _references(self, gray: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values that a file may hold, ids (N,) or colors (N, 3), and the class ids (N,) that they are."""
        labels = self.table.labels
        if gray and not self.by_color:
            known = np.flatnonzero(labels.table >= 0)
            return known, labels.table[known].astype(np.uint8)
        colors = np.array([color[:3] for color in labels.colors]).reshape(-1, 3)
        ids = np.array([labels.table[color[3]] for color in labels.colors], np.uint8)
        return colors, ids

    def _without_ringing(self, notes: list[str]) -> NDArray[Any]:
        values = pixels_of(self.path)
        gray = values.ndim == 2
        references, ids = self._references(gray)
        if not len(references):
            raise ImageError.of(self.path, "is a JPEG in colors, and the class table has none that differ; give one")
        if gray and self.by_color:
            values = np.repeat(values[..., None], 3, axis=-1)
        as_ids = gray and not self.by_color
        tolerance, reach = (0.5, REACH) if as_ids else (max(self.tolerance, _AREA_OF_COLOR), 2 * REACH)
        found: NDArray[np.uint8] = ids[without_ringing(values, references, tolerance, reach)]
        exact = ids[np.minimum(np.searchsorted(references, values), len(ids) - 1)] if as_ids else None
        if exact is not None:
            changed = float(((exact != found) | ~np.isin(values, references)).mean())
            notes.append(
                f"{self.path}: is a JPEG; {changed:.1%} of its pixels were ringing, and have the class beside them"
            )
        else:
            notes.append(f"{self.path}: is a JPEG; pixels at borders have the class whose color is nearest")
        return found

    def _by_color(self) -> NDArray[Any]:
        values = pixels_of(self.path)
        colors = np.repeat(values[..., None], 3, axis=-1) if values.ndim == 2 else values
        references, ids = self._references(gray=False)
        of_color = np.full(1 << 24, -1, np.int16)
        of_color[packed(references)] = ids
        numbers = packed(colors)
        found: NDArray[Any] = of_color[numbers]
        strange = found < 0
        if strange.any():
            others, counts = np.unique(numbers[strange], return_counts=True)
            of_color[others] = self._nearby(others, counts, references, ids)
            found[strange] = of_color[numbers[strange]]
        return found.astype(np.uint8)

    def _nearby(
        self, numbers: NDArray[Any], counts: NDArray[Any], references: NDArray[Any], ids: NDArray[Any]
    ) -> NDArray[Any]:
        """Class ids of colors (as numbers) that are none of the table's, by the nearest one within the tolerance."""
        if len(numbers) > _MOST_COLORS:
            raise ImageError.of(self.path, f"has {len(numbers)} colors that are no class; that is a picture, no mask")
        colors = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=-1)
        apart = np.sqrt(((colors[:, None] - references[None]) ** 2).sum(axis=-1))
        far = np.flatnonzero(apart.min(axis=1) > self.tolerance)
        if len(far):
            order = far[np.argsort(-counts[far], kind="stable")]
            shown = ", ".join(f"{tuple(colors[i].tolist())} on {counts[i]} px" for i in order[:_SHOWN].tolist())
            more = f", and {len(far) - _SHOWN} more" if len(far) > _SHOWN else ""
            raise ImageError.of(
                self.path,
                f"has colors that the class table {self.table.labels.name} does not have: {shown}{more}; name them in "
                "its mask_colors or mask_ignore_colors, or take nearby colors with ‹color_tolerance›",
            )
        taken: NDArray[np.uint8] = ids[apart.argmin(axis=1)]
        return taken

"""A picture of a palette: its colors with their class ids, and a mask before and after the round trip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import atomic_path
from gss.maskige import Maskige
from gss.palette import min_distance
from gss.roundtrip import RoundTrip

PICTURES = (".png", ".jpg", ".svg", ".pdf")


def draw_palette(path: Path, palette: NDArray[Any], names: Sequence[str], trip: RoundTrip) -> None:
    """Writes the picture.

    Args:
        path: file to write, of one of the kinds ``PICTURES``.
        palette: (N + 1, 3), 0..255.
        names: N class names.
        trip: whose first mask is shown.
    """
    from common.plots import plt  # takes a second

    columns = min(10 if len(names) <= 20 else 20, len(palette))
    rows = -(-len(palette) // columns)
    figure, (colors_axes, trip_axes) = plt.subplots(
        2, 1, figsize=(12, 4.5 + 0.45 * rows), height_ratios=[rows * 0.45, 4]
    )
    swatches = np.full((rows * columns, 3), 255)
    swatches[: len(palette)] = palette
    colors_axes.imshow(swatches.reshape(rows, columns, 3).astype(np.uint8), aspect="auto")
    for i, color in enumerate(palette):
        text = "ignore" if i == len(names) else names[i].replace(" ", "\n") if len(names) <= 20 else str(i)
        ink = "black" if color @ [0.3, 0.59, 0.11] > 110 else "white"  # by the color's brightness
        place = {"ha": "center", "va": "center", "fontsize": 6, "parse_math": False}
        colors_axes.text(i % columns, i // columns, text, color=ink, **place)
    colors_axes.set_title(f"{len(names)} classes, smallest distance {min_distance(palette):.1f}")
    mask = trip.masks[0]
    labels, colors = trip(palette, mask)
    maskige = Maskige(palette).encode(mask[None])[0]
    wrong = ((labels != mask) & (mask < len(names))).cpu()
    shown = {
        "maskige": maskige.movedim(0, -1).cpu(),
        "after the round trip": colors.round().byte().movedim(0, -1).cpu(),
        f"wrong pixels: {wrong.float().mean():.2%}": ~wrong,
    }
    for i, (title, image) in enumerate(shown.items()):
        inset = trip_axes.inset_axes((i / 3 + 0.01, 0, 0.31, 0.95))
        inset.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        inset.set_title(title, fontsize=9)
        inset.axis("off")
    colors_axes.set(xticks=[], yticks=[])
    trip_axes.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", format=path.suffix[1:])
    plt.close(figure)

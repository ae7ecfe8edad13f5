"""A folder of new layouts: masks, the list of a synthesis, a report and a picture of some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from common.classes import ClassTable, load_class_table, plain_name
from common.converters import integer, number
from common.errors import InputError
from common.files import atomic_folder, inside, write_json
from common.options import Options, option
from common.pairing import MASK_SUFFIXES, list_files, refuse_doubt
from common.pictures import colorize, contact_sheet
from common.schema import one_line
from post_processing.layouts import Layout, Moves, default_shares, layouts, pixels_by_class, shares

SHOWN = 8  # layouts in the picture


@dataclass(frozen=True, kw_only=True)
class LayoutsOptions(Options):
    """Which masks to take pieces from, what to make of them, and where to write it."""

    mask_path: tuple[Path, ...] = option(metavar="DIR", help="folders of real masks; never those of a test set")
    classes: str = option(help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    out: Path = option(help="new folder: label/, items.json (a list for a synthesis), layouts.json, layouts.png")
    data_root: Path | None = option(
        None, metavar="DIR", help="folder at or above OUT that the list's paths are relative to (default: OUT)"
    )
    count: int = option(1000, convert=integer(1), help="layouts to make")
    towards: tuple[str, ...] = option(
        (),
        metavar="CLASS=SHARE",
        help="shares of pixels to come near to, 0..1; what is left goes to the other classes as they are (default: "
        "half of the way to even shares)",
    )
    pieces: int = option(4, convert=integer(1, 1000), help="pieces pasted into a mask at most")
    margin: int = option(4, convert=integer(0, 1000), help="pixels around a region that come with it")
    smallest: int = option(64, convert=integer(1), help="pixels of the smallest region that is taken")
    scale: tuple[float, float] = option(
        (0.7, 1.4), convert=number(0.05, 20), nargs=2, metavar=("LOW", "HIGH"), help="factors that pieces are scaled by"
    )
    prompt: str = option("a satellite image of {classes}", help="prompt; {classes} are the names of those shown")
    seed: int = option(0, convert=integer(0), help="of all draws; the first layouts are the same whatever the count")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mask_path:
            raise InputError("‹mask_path›: name a folder")
        if self.scale[0] > self.scale[1]:
            raise InputError(f"‹scale› {self.scale[0]:g} {self.scale[1]:g}: the smaller factor comes first")
        if self.data_root is not None and not inside(self.out, self.data_root):
            raise InputError(f"‹out› {self.out}: is not below ‹data_root› {self.data_root}; name a folder there")


def make_layouts(options: LayoutsOptions) -> str:
    """Reads all masks, makes the layouts, writes the folder.

    Returns:
        a summary in a line.

    Raises:
        InputError: a mask cannot be read or holds other classes, the options do not fit, or the folder is there.
    """
    table = load_class_table(options.classes)
    masks = [path for folder in options.mask_path for path in list_files(folder, MASK_SUFFIXES, "‹mask_path›").values()]
    refuse_doubt(table.labels, masks, "‹mask_path›")
    counts = _counts(masks, table)
    target = target_shares(options.towards, table, counts.sum(0))
    moves = Moves(options.pieces, options.margin, options.smallest, options.scale)
    total = np.zeros(len(table), dtype=np.int64)
    below = Path() if options.data_root is None else options.out.resolve().relative_to(options.data_root.resolve())
    with atomic_folder(options.out, "‹out›") as folder:
        (folder / "label").mkdir()
        shown, lines, origins = [], [], {}
        made = layouts(masks, table.labels, counts, target, options.count, moves, options.seed)
        for n, layout in enumerate(tqdm(made, "layouts", options.count, unit="layout", disable=None)):
            name = f"layout_{n:06}"
            Image.fromarray(table.labels.to_file(layout.ids)).save(folder / "label" / f"{name}.png")
            pixels = pixels_by_class(layout.ids, len(table))
            names = " ".join(table.names[c] for c in np.flatnonzero(pixels))
            source = (below / f"label/{name}.png").as_posix()
            lines.append({"source": source, "prompt": options.prompt.replace("{classes}", names)})
            origins[name] = _origin(layout, masks, table)
            total += pixels
            if n < SHOWN:
                shown.append(
                    [colorize(ids, table.palette) for ids in (table.labels.read(masks[layout.base]), layout.ids)]
                )
        (folder / "items.json").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        reached = {
            name: {"real": round(real, 4), "asked": round(asked, 4), "layouts": round(got, 4)}
            for name, real, asked, got in zip(
                table.names, shares(counts.sum(0)).tolist(), target.tolist(), shares(total).tolist(), strict=True
            )
        }
        write_json({"shares": reached, "layouts": origins}, folder / "layouts.json")
        if len({picture.shape for row in shown for picture in row}) == 1:
            Image.fromarray(contact_sheet(shown)).save(folder / "layouts.png")
    return f"{options.count} layouts of {len(masks)} masks in {options.out}: " + ", ".join(
        f"{name} {values['real']:.1%} -> {values['layouts']:.1%} (asked {values['asked']:.1%})"
        for name, values in reached.items()
    )


def _counts(masks: Sequence[Path], table: ClassTable) -> NDArray[np.int64]:
    """Pixels of each class in each mask (N, C)."""

    def count(path: Path) -> NDArray[np.int64]:
        return table.labels.count_classes(path)[0]

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(count, masks), "masks", len(masks), unit="mask", disable=None))
    counts = np.stack(found)
    if not counts.any():
        raise InputError("‹mask_path›: no mask shows a class; all pixels are to be ignored")
    return counts


def target_shares(towards: Sequence[str], table: ClassTable, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The shares asked for (C,), their sum is 1.

    Args:
        towards: ``class=share``.
        table: the classes.
        counts: pixels of each class in the real masks (C,).

    Raises:
        InputError: no such class, one that no mask shows, or shares that are none.
    """
    if not towards:
        return default_shares(counts)
    by_name = {plain_name(name): index for index, name in enumerate(table.names)}
    asked: dict[int, float] = {}
    for word in towards:
        name, _, value = word.rpartition("=")
        shown = one_line(word, 80)
        if plain_name(name) not in by_name:
            raise InputError(f"‹towards› {shown}: no class of that name; the classes are {', '.join(table.names)}")
        index = by_name[plain_name(name)]
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError(f"‹towards› {shown}: the share must be a number in 0..1")
        if share and not counts[index]:
            raise InputError(f"‹towards› {shown}: no mask shows it, there is nothing to take pieces of")
        if index in asked:
            raise InputError(f"‹towards› {shown}: the class is named twice")
        asked[index] = share
    if (named := sum(asked.values())) > 1 + 1e-9:
        raise InputError(f"‹towards›: the shares add up to {named:g}, more than 1")
    others = np.array([0.0 if index in asked else float(count) for index, count in enumerate(counts)])
    if others.sum() == 0 and abs(named - 1) > 1e-9:
        raise InputError(f"‹towards›: the shares add up to {named:g}, and no class is left for the rest")
    target: NDArray[np.float64] = others * ((1 - named) / max(others.sum(), 1))
    target[list(asked)] = list(asked.values())
    return target


def _origin(layout: Layout, masks: Sequence[Path], table: ClassTable) -> dict[str, Any]:
    """What a layout was made of, for the report."""
    pieces = [{"class": table.names[wanted], "of": masks[donor].name} for wanted, donor in layout.pieces]
    return {"base": masks[layout.base].name, "pieces": pieces}

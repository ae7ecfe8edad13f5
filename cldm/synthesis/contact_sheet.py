"""Synthesized images beside what they were made from: mask, reference, synthesized, and the mask's real image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cldm.synthesis.records import RECORDS, images_in, read_records
from common.bands import bands_of, read_painted, read_picture
from common.classes import load_class_table
from common.converters import integer
from common.errors import InputError
from common.files import atomic_path, check_writable
from common.lists import parse_line, read_lines
from common.options import Options, option
from common.pictures import colorize, contact_sheet
from common.schema import OpenSchema, parse

COLUMNS = ("mask", "reference", "synthesized", "real")


@dataclass(frozen=True, kw_only=True)
class ContactSheetOptions(Options):
    """What to show, and where to write it."""

    samples: Path = option(metavar="DIR", help="folder that inference wrote")
    data_root: Path = option(metavar="DIR", help="folder that the list's paths are relative to")
    items: Path = option(metavar="FILE", help="the list that inference was given")
    classes: str = option(metavar="TABLE", help="FUSU, GID, LoveDA, MBRSC or a classes.json")
    rgb: tuple[int, ...] | None = option(
        None, convert=integer(1, 16), nargs=3, metavar="BAND", help="bands that are shown as red, green and blue"
    )
    count: int = option(8, convert=integer(1, 1000), help="samples to show")
    size: int = option(128, convert=integer(8, 1024), help="side of each picture in pixels")
    out: Path = option(metavar="PNG", help="picture to write")


class Listed(OpenSchema):
    """What is needed of a line of the list."""

    source: str
    target: str | None = None


def real_images(items: Path, data_root: Path) -> dict[str, Path]:
    """The real images that a list names, by their masks' names.

    Raises:
        InputError: the list cannot be read, or one of its lines; names it.
    """
    real = {}
    for number, line in read_lines(items):
        where = f"{items} line {number}"
        try:
            content = parse_line(line)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
        item = parse(content, Listed, where)
        if item.target is not None:
            real[Path(item.source).stem] = data_root / item.target
    return real


def rows(options: ContactSheetOptions) -> list[list[NDArray[Any]]]:
    """Pictures (size, size, 3) uint8 of ``count`` samples spread over the folder's records, see ``COLUMNS``.

    A reference or real image that there is none of is white.

    Raises:
        InputError: no records or images there, or a file that is damaged; names it.
    """
    samples, size = options.samples, options.size
    if not samples.is_dir():
        raise InputError(f"‹samples› {samples}: no such folder")
    images = images_in(samples)
    records = [record for record in read_records(samples).values() if record.name in images]
    if not records:
        raise InputError(f"‹samples› {samples}: no images with records of synthesis ({RECORDS}) there")
    real = real_images(options.items, options.data_root)
    table = load_class_table(options.classes)
    chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, options.count).round().astype(int))]

    def fit(picture: NDArray[Any], resample: Image.Resampling = Image.Resampling.BICUBIC) -> NDArray[Any]:
        return np.array(Image.fromarray(picture).resize((size, size), resample))

    sheet = []
    white = np.full((size, size, 3), 255, np.uint8)
    for record in chosen:
        if record.mask is None:
            raise InputError(f"‹samples› {samples}: {RECORDS}: the record of {record.name} names no mask")
        mask = Path(record.mask)
        bands = bands_of(record.bands, f"{samples / RECORDS}, {record.name}")
        bands = None if bands is None else bands.showing(options.rgb)
        sheet.append(
            [
                fit(colorize(table.labels.read(mask), table.palette), Image.Resampling.NEAREST),
                white if record.reference is None else fit(read_picture(record.reference, bands)),
                fit(read_painted(samples / images[record.name][0], bands)),
                fit(read_picture(real[mask.stem], bands)) if mask.stem in real else white,
            ]
        )
    return sheet


def write_contact_sheet(options: ContactSheetOptions) -> int:
    """Draws the sheet, writes it, and returns how many samples it shows.

    Raises:
        InputError: see ``rows``; or the picture cannot be written.
    """
    check_writable(options.out.parent, "‹out›")
    shown = rows(options)
    pictures = contact_sheet(shown)
    sheet = Image.new("RGB", (pictures.shape[1], pictures.shape[0] + 18), "white")
    sheet.paste(Image.fromarray(pictures), (0, 18))
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(COLUMNS):
        draw.text((i * (options.size + 4) + 4, 3), title, fill="black")
    with atomic_path(options.out) as path:
        sheet.save(path, format="PNG")
    return len(shown)

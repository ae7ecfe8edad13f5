"""Lists of items as JSON lines, and everything that can be wrong with them, found before any work.

A line is ``{"source": mask, "target": image, "prompt": text, "ref_image": reference}``; paths are relative to the data
root. In a synthesis, ``"seeds": [0, 3]`` says which images of the line are made; several lines may then share a mask,
each with its own seeds, as for several references (scripts/allot.py writes such lists).

All faults of a list are reported at once, each with line and field.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from common.bands import Bands, read_pixels
from common.classes import ClassTable
from common.errors import InputError
from common.georeference import Georeference, map_faults
from common.images import IGNORE, ImageError, mask_and_orientation, pixels_of_ids
from common.lists import locate, parse_line, read_lines, text_fault
from common.pairing import refuse_doubt
from common.processes import cores
from common.rasters import place_of
from common.schema import one_line

_SHOWN = 10  # faults that a message lists


@dataclass(frozen=True)
class Item:
    """One item of a list.

    Attributes:
        mask: file of the semantic mask; None for an image without one.
        image: file of the image that belongs to the mask; None where it is not needed.
        reference: file of the reference image; None where it is not needed.
        prompt: text, may be empty.
        name: stem of the mask's file name, or else of the image's; outputs carry it.
        line: line in the list, from 1.
        size: (height, width) of mask or image in pixels; None where files were not opened.
        seeds: of the images that a synthesis makes of it; None leaves them to the command.
    """

    mask: Path | None
    image: Path | None
    reference: Path | None
    prompt: str
    name: str
    line: int
    size: tuple[int, int] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Fault:
    """What is wrong with one field of one line; ``str()`` gives it in one line of text."""

    list_file: Path
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.list_file} line {self.line}" + (f", field {self.field}" if self.field else "")
        return one_line(f"{where}: {self.reason}", 2000)


@dataclass
class _Line:
    """A line as far as it could be read."""

    number: int
    prompt: str = ""
    names: dict[str, str] = field(default_factory=dict)  # field -> path as written
    paths: dict[str, Path] = field(default_factory=dict)  # field -> path below the data root
    faults: list[tuple[str, str]] = field(default_factory=list)  # (field, reason)
    size: tuple[int, int] | None = None
    pixels: int = 0  # of classes, in the mask
    turned: bool = False  # an EXIF tag asks to turn one of the files
    places: dict[str, Georeference | None] = field(default_factory=dict)  # field -> place on the map
    unlabeled: bool = False  # an image without a mask, where such are taken
    seeds: tuple[int, ...] | None = None

    def item(self) -> Item:
        mask, image, reference = (self.paths.get(name) for name in ("source", "target", "ref_image"))
        named = self.paths["target" if self.unlabeled else "source"]
        return Item(mask, image, reference, self.prompt, named.stem, self.number, self.size, self.seeds)


def read_manifest(
    list_file: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    *,
    classes: ClassTable | None = None,
    need_image: bool = True,
    need_reference: bool = False,
    need_mask: bool = True,
    painted: bool | None = None,
    skip_invalid: bool = False,
    size: tuple[int, int] | None = None,
    multiple_of: int = 64,
    crop: int | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    check_files: bool = True,
    follow_links: bool = False,
    bands: Bands | None = None,
    several_maps: bool = False,
) -> tuple[list[Item], list[Fault]]:
    """Reads a list and checks every line and every file it names.

    Args:
        list_file: JSON lines, UTF-8; a relative path is looked up as given, then below ``data_root``.
        data_root: folder that all paths in the list are relative to and may not leave.
        classes: if given, mask values must be ids of these classes or the ignore id.
        need_image: lines must name an image (``target``); otherwise that field is not looked at.
        need_reference: lines must name a reference image (``ref_image``); otherwise not looked at.
        painted: images are made of the items, each of an output's name; by default where ``need_image`` is False.
        need_mask: lines must name a mask (``source``); otherwise one without it is an image without a mask, and needs
            no prompt.
        skip_invalid: leave faulty lines out instead of raising.
        size: (height, width) that items will be resized to; None keeps each file's own size.
        multiple_of: height and width must be multiples of this many pixels.
        crop: side of the squares that are seen of items; then this has to be such a multiple, and items as large.
        num_workers: threads that open files; None is one per CPU.
        progress: show a bar with the time left.
        check_files: open every file; False checks the lines alone.
        follow_links: links below the data root may lead to files outside it.
        bands: what is stated of the images' bands; None for three of 8 bits.
        several_maps: masks and images need not share one coordinate reference system.

    Returns:
        The valid items in the list's order, and all faults (none without ``skip_invalid``).

    Raises:
        InputError: faults (without ``skip_invalid``), no items, an unreadable list, or a size that is no multiple.
    """
    root, path = _resolve(list_file, data_root)
    if crop is not None and (crop <= 0 or crop % multiple_of):
        raise InputError(f"crop {crop}: must be a multiple of {multiple_of} px")
    if size is not None and (min(size) <= 0 or (crop is None and any(side % multiple_of for side in size))):
        raise InputError(f"size {size[0]} x {size[1]}: height and width must be multiples of {multiple_of} px")
    if size is not None and crop is not None and min(size) < crop:
        raise InputError(f"crop {crop}: larger than size {size[0]} x {size[1]}")
    fields = ["source", *(["target"] if need_image else []), *(["ref_image"] if need_reference else [])]
    painted = not need_image if painted is None else painted
    lines = [_parse(number, text, fields, root, follow_links, need_mask, painted) for number, text in read_lines(path)]
    if not lines:
        raise InputError(f"{path}: no items; write one JSON object a line")
    _find_duplicates(lines, painted)
    _find_shared_outputs(lines)
    if check_files:
        if classes is not None:
            refuse_doubt(classes.labels, [line.paths["source"] for line in lines if "source" in line.paths], str(path))
        multiple = multiple_of if size is None and crop is None else 1
        smallest = crop if crop is not None and size is None else 1
        opened = partial(_open, classes=classes, multiple_of=multiple, smallest=smallest, bands=bands, painted=painted)
        _open_all(lines, opened, num_workers or cores(), progress)
        if not several_maps:
            _find_maps(lines)

    faults = [Fault(path, line.number, name, reason) for line in lines for name, reason in line.faults]
    items = [line.item() for line in lines if not line.faults]
    if faults and not (skip_invalid and items):
        raise InputError(_message(path, faults, none_left=skip_invalid))
    labeled = [line for line in lines if not line.faults and not line.unlabeled]
    if check_files and labeled and not any(line.pixels for line in labeled):
        raise InputError(f"{path}: no mask shows a class, all pixels of all {len(labeled)} masks are to be ignored")
    if progress and (turned := sum(line.turned for line in lines)):
        print(
            f"{path}: {turned} of {len(lines)} items have an EXIF tag that asks to turn them; pixels are used as "
            "stored, the tag is not applied",
            file=sys.stderr,
        )
    return items, faults


def _resolve(list_file: str | os.PathLike[str], data_root: str | os.PathLike[str]) -> tuple[Path, Path]:
    root, path = Path(data_root), Path(list_file)
    try:
        if not root.is_dir():
            raise InputError(
                f"data_root {one_line(root)}: no such folder; name the folder that the list's paths are relative to"
            )
        if not path.is_file():
            if not (root / path).is_file():
                raise InputError(f"{one_line(path)}: no such list file, neither here nor below {one_line(root)}")
            path = root / path
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{one_line(path)} or {one_line(root)}: no usable path ({one_line(error)})") from error
    return root, path


def _parse(
    number: int, text: str, fields: list[str], root: Path, follow_links: bool, need_mask: bool, painted: bool
) -> _Line:
    """One line to paths below ``root``; what is wrong is noted, not raised."""
    line = _Line(number)
    try:
        content = parse_line(text)
    except ValueError as error:
        line.faults.append(("", str(error)))
        return line
    line.unlabeled = not need_mask and "source" not in content
    for name in [*fields, "prompt"]:
        value = content.get(name)
        if name not in content and line.unlabeled and name != "target":
            continue
        if name not in content:
            reason = f"missing (fields of this line: {', '.join(content) or 'none'})"
            if name == "target" and painted:
                reason += "; ‹start_strength› below 1 paints over an image"
            if name == "source" and "target" in fields and not painted:
                reason += "; data.params.train.params.unlabeled=true trains on images without a mask, too"
            line.faults.append((name, reason))
        elif not isinstance(value, str):
            line.faults.append((name, f"must be text in quotes, is {json.dumps(value)[:40]}"))
        elif name == "prompt":
            line.prompt = value
            if fault := text_fault(value):
                line.faults.append((name, fault))
        else:
            line.names[name] = value
            try:
                line.paths[name] = locate(value, root, follow_links)
            except ValueError as error:
                line.faults.append((name, str(error)))
    if painted and "seeds" in content:
        if _are_seeds(seeds := content["seeds"]):
            line.seeds = tuple(seeds)
        else:
            reason = f"must be whole numbers from 0, each once, as [0, 1]; is {json.dumps(seeds)[:40]}"
            line.faults.append(("seeds", reason))
    return line


def _are_seeds(value: object) -> bool:
    """Whether a value is a list of distinct seeds."""
    if not isinstance(value, list) or not value or any(type(seed) is not int for seed in value):
        return False
    return min(value) >= 0 and max(value) < 2**62 and len(set(value)) == len(value)


def _find_shared_outputs(lines: list[_Line]) -> None:
    """Lines with seeds may share a mask, as long as no two make the same image."""
    without = {line.paths["source"].stem: line for line in lines if line.seeds is None and "source" in line.paths}
    masks: dict[str, _Line] = {}
    taken: dict[tuple[str, int], int] = {}
    for line in lines:
        if line.seeds is None or "source" not in line.paths:
            continue
        mask = line.paths["source"]
        first = masks.setdefault(mask.stem, line)
        if other := without.get(mask.stem):
            line.faults.append(("seeds", f"line {other.number}, of the same mask's name, has none; give it seeds, too"))
        elif first.paths["source"].resolve() != mask.resolve():
            reason = f"{line.names['source']} has the file name of line {first.number}'s mask; rename one"
            line.faults.append(("source", reason))
        for seed in line.seeds:
            if (owner := taken.setdefault((mask.stem, seed), line.number)) != line.number:
                line.faults.append(("seeds", f"seed {seed} of this mask is line {owner}'s already; take another"))
                break


def _find_duplicates(lines: list[_Line], painted: bool) -> None:
    """Pairs are one-to-one; where images are synthesized, no two items may write the same output file."""
    used: dict[tuple[str, str], int] = {}
    for line in lines:
        for name in ("source", "target"):
            if (path := line.paths.get(name)) and line.seeds is None:
                first = used.setdefault((name, str(path.resolve())), line.number)
                if first != line.number:
                    line.faults.append((name, f"{line.names[name]} is used by line {first} already; use each once"))
                elif name == "source" and painted:
                    first = used.setdefault(("stem", path.stem), line.number)
                    if first != line.number:
                        reason = f"{line.names[name]} has the file name of line {first}'s mask, so that their outputs"
                        line.faults.append((name, f"{reason} would overwrite each other; rename one"))


def _open_all(lines: list[_Line], opened: Callable[[_Line], None], num_workers: int, progress: bool) -> None:
    """Decodes every file of every line, in threads (decoders work outside the interpreter's lock)."""
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            done = pool.map(opened, lines)
            for _ in tqdm(done, total=len(lines), desc="checking files", unit="item", disable=not progress):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C ends now, not after the whole list
            raise


def _find_maps(lines: list[_Line]) -> None:
    """Masks and images lie on one map; references are from elsewhere."""
    fields = ("source", "target")
    places = {line.paths[name]: line.places[name] for name in fields for line in lines if name in line.places}
    faults = map_faults(places)
    for line in lines:
        for name in fields:
            if fault := faults.get(line.paths.get(name, Path())):
                line.faults.append((name, f"{line.names[name]} {fault}; or set several_maps"))


def _open(
    line: _Line, classes: ClassTable | None, multiple_of: int, smallest: int, bands: Bands | None, painted: bool
) -> None:
    shapes: dict[str, tuple[int, int]] = {}
    shown = known = None  # where the mask shows a class, and where the image has data
    for name, path in line.paths.items():
        try:
            if name == "source":
                read = mask_and_orientation if classes is None else classes.labels.file_ids_and_orientation
                pixels, turn = read(path)
            else:
                found = read_pixels(path, bands)
                pixels, turn = found.values, found.orientation
                known = found.valid if name == "target" else known
            line.places[name] = place_of(path)
        except ImageError as error:
            line.faults.append((name, f"{line.names[name]}: {error.reason}"))
            continue
        line.turned |= turn != 1
        shapes[name] = (pixels.shape[0], pixels.shape[1])
        if name == "source":
            counts = pixels_of_ids(pixels)
            if painted:
                shown = (pixels if classes is None else classes.labels.table[pixels]) != IGNORE
            line.pixels = (
                int(pixels.size - counts[IGNORE])
                if classes is None
                else int(counts[classes.labels.table != IGNORE].sum())
            )
        if name == "source" and classes is not None and (wrong := classes.labels.wrong(pixels)):
            line.faults.append((name, f"{line.names[name]}: {wrong}"))
    named = "target" if line.unlabeled else "source"
    if named not in shapes:
        return
    line.size = height, width = shapes[named]
    if shapes.get("target", line.size) != line.size:
        other_height, other_width = shapes["target"]
        reason = f"image is {other_width} x {other_height} px, its mask {width} x {height} (width x height)"
        line.faults.append(("target", f"{line.names['target']}: {reason}; they must agree"))
    elif shown is not None and known is not None and (shown & ~known).any():
        reason = (
            "is to be painted over, and has no data where its mask shows a class; make these pixels 255 in the mask"
        )
        line.faults.append(("target", f"{line.names['target']}: {reason}"))
    if min(height, width) < smallest:
        reason = f"{width} x {height} px (width x height), smaller than the crops of {smallest} (crop)"
        line.faults.append((named, f"{line.names[named]}: {reason}; leave it out, or lower crop"))
    if height % multiple_of or width % multiple_of:
        reason = f"{width} x {height} px (width x height) are no multiples of {multiple_of}; use ‹size› to resize"
        line.faults.append((named, f"{line.names[named]}: {reason}"))


def _message(path: Path, faults: list[Fault], none_left: bool) -> str:
    if len(faults) == 1 and not none_left:
        return str(faults[0])
    head = f"{path}: {len(faults)} fault{'s' if len(faults) > 1 else ''}" + (", no valid items" if none_left else "")
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return "; ".join([head, *(str(fault).removeprefix(f"{path} ") for fault in faults[:_SHOWN]), *more])

"""``tisynth import``: reads data in the form that they have, writes them in this project's layout, whole or not at all.

OUT/img_train  OUT/label_train  OUT/img_test  OUT/label_test  OUT/ref_img
OUT/train_set_items.json  OUT/test_set_items.json  OUT/inference_set_items.json  OUT/classes.json  OUT/import.json
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.classes import ClassTable
from common.command import spoken_as
from common.errors import InputError
from common.files import atomic_path, inside, name_fault, only_writer_of, room_for, write_json
from common.images import pixels_of_ids
from common.options import recorded
from common.pairing import IMAGE_SUFFIXES, list_files, listed
from common.rng import Stream, seed_from
from importing.detect import recognize
from importing.options import ImportOptions
from importing.pictures import Picture, read_picture
from importing.source import DRAWN, Scene, Source
from importing.splits import splits_of
from importing.tiles import tiles

_SHOWN = 200  # notes that the report keeps
_TOLD = 8  # notes that the summary shows
_MUCH = 0.3  # share of pixels without label from which it is said


@dataclass(frozen=True)
class Item:
    """A written pair, or a reference.

    Attributes:
        name: of its files, without suffix.
        image: below the data root.
        mask: below the data root; empty for a reference.
        pixels: of each class, and last those to ignore, (N + 1,).
    """

    name: str
    image: str
    mask: str
    pixels: NDArray[Any]


@dataclass
class Made:
    """What became of a scene."""

    split: str
    items: list[Item] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Imported:
    """What was written, and what to tell of it."""

    report: dict[str, Any]
    summary: str


def import_data(options: ImportOptions) -> Imported:
    """Imports a data set; see the module's text.

    Raises:
        InputError: data that are in no known format or contradict themselves; nothing is written then.
    """
    _check_out(options)
    source = recognize(options)
    labeled = [scene for scene in source.scenes if scene.mask is not None]
    alone = [scene for scene in source.scenes if scene.mask is None]
    if not labeled:
        raise InputError(f"‹source› {options.source}: no image has a mask (format {source.format})")
    if alone and options.unlabeled == "refuse" and source.format not in DRAWN:
        raise InputError(
            f"{listed([f'{scene.image}: has no mask' for scene in alone])}; add them, or say with ‹unlabeled› whether "
            "such images are left out or become references"
        )
    splits, notes = splits_of(labeled, options)
    if alone and options.unlabeled != "reference":
        notes.append(f"{len(alone)} images have no mask, and are left out")
    if options.dry_run:
        found = Imported(
            {}, "\n".join([_found(source, labeled), *_told([*source.notes, *notes]), "dry run: nothing is written"])
        )
        return found
    with only_writer_of_new(options) as folder:
        work = [(scene, splits[scene.name]) for scene in labeled]
        references = _references(alone, options)
        work += [(scene, "ref") for scene in references]
        made = _write_all(work, source.table, folder, options)
        report = _finish(made, source, notes, folder, options)
    return Imported(report, _summary(report, source, labeled, options))


def _check_out(options: ImportOptions) -> None:
    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"‹out› {out}: is there already, and nothing is overwritten; name another folder, or remove it"
        )
    if options.source.is_dir() and inside(out, options.source):
        raise InputError(
            f"‹out› {out}: lies in ‹source›, whose files are not to be mixed with new ones; name another folder"
        )


@contextlib.contextmanager
def only_writer_of_new(options: ImportOptions) -> Iterator[Path]:
    """A folder beside ``out`` to write into, which becomes ``out`` at the end, or is removed."""
    out = options.out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"‹out› {options.out}: cannot be made ({error.strerror}); name another folder") from error
    with only_writer_of(out, "‹out›"), room_for("‹out›", out):
        folder = out.with_name(f".{out.name}.importing")
        shutil.rmtree(folder, ignore_errors=True)  # of an import that was killed
        try:
            folder.mkdir()
            yield folder
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _references(alone: Sequence[Scene], options: ImportOptions) -> list[Scene]:
    """Images that become references: those of the user's folder, and those without mask, if the user says so."""
    found = list(alone) if options.unlabeled == "reference" else []
    if options.references is not None:
        files = list_files(options.references, IMAGE_SUFFIXES, "‹references›")
        found += [Scene(name, path, None) for name, path in files.items()]
    names = Counter(scene.name for scene in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(f"‹references›: {twice[0]} is the name of two references; rename one")
    return found


def _write_all(
    work: Sequence[tuple[Scene, str]], table: ClassTable, folder: Path, options: ImportOptions
) -> list[Made]:
    """Writes all scenes, in threads; decoders and encoders work outside the interpreter's lock."""
    for scene, _ in work:
        if fault := name_fault(scene.name, longest=200):
            raise InputError(f"{scene.image}: cannot be the name of files to write ({fault}); rename it")
    for split in {split for _, split in work}:
        for kind in ("img", "label") if split != "ref" else ("",):
            (folder / (f"{kind}_{split}" if kind else "ref_img")).mkdir()

    def make(task: tuple[Scene, str]) -> Made:
        return _write(task[0], task[1], table, folder, options)

    with ThreadPoolExecutor(options.num_workers or None) as pool:
        try:
            return list(tqdm(pool.map(make, work), "import", len(work), unit="scene", leave=False))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(scene: Scene, split: str, table: ClassTable, folder: Path, options: ImportOptions) -> Made:
    """One scene, whole or in tiles."""
    made = Made(split)
    picture = read_picture(scene.image)
    if scene.upright and picture.orientation != 1:
        raise InputError(
            f"{scene.image}: has an EXIF tag that turns it, and labels may be drawn on it as it is or as it is turned; "
            "write it again upright, without the tag, and label that"
        )
    if options.tile is not None and min(picture.size) < options.tile:
        raise InputError(
            f"{scene.image}: is {picture.size[1]} x {picture.size[0]} px (width x height), smaller than ‹tile› "
            f"{options.tile}"
        )
    ids = None if scene.mask is None else picture.without_gaps(scene.mask.read(picture.size, made.notes))
    for tile in tiles(picture.size, options.tile, options.overlap):
        name = f"{scene.name}{tile.suffix}"
        own = None if ids is None else ids[tile.window]
        pixels: NDArray[Any] = np.zeros(len(table) + 1, np.int64)
        if own is not None:
            counts = pixels_of_ids(np.ascontiguousarray(own))
            pixels = np.append(counts[: len(table)], counts[-1])
            share = pixels[-1] / own.size
            if share == 1 or (options.tile is not None and share > options.max_unlabeled):
                made.left_out.append(f"{name}: {share:.0%} of its pixels have no label")
                continue
        place = folder / ("ref_img" if own is None else f"img_{split}")
        image = picture.write(place, name, tile if tile.suffix else None)
        mask = ""
        if own is not None:
            mask = f"label_{split}/{picture.write_mask(folder / f'label_{split}', name, own, tile).name}"
        made.items.append(Item(name, f"{place.name}/{image.name}", mask, pixels))
    return made


def _finish(
    made: Sequence[Made], source: Source, notes: Sequence[str], folder: Path, options: ImportOptions
) -> dict[str, Any]:
    """Lists, class table and report."""
    table, by_split, pixels = source.table, {}, {}
    for split in ("train", "val", "test", "ref"):
        items = sorted((item for one in made if one.split == split for item in one.items), key=lambda item: item.name)
        if items:
            by_split[split] = items
            pixels[split] = np.sum([item.pixels for item in items], axis=0)
    if "train" not in by_split:
        raise InputError(f"‹source› {options.source}: no training image is left, all are without labels")
    left_out = [line for one in made for line in one.left_out]
    references = by_split.pop("ref", [])
    pixels.pop("ref", None)
    for split, items in by_split.items():
        lines = [_line(item, split, table, options) for item in items]
        _write_lines(lines, folder / f"{split}_set_items.json")
    if references:
        lines = []
        for item in by_split["train"]:
            chosen = seed_from(options.seed, Stream.IMPORT_REFERENCE, item.name) % len(references)
            lines.append({**_line(item, "train", table, options), "ref_image": references[chosen].image})
        _write_lines(lines, folder / "inference_set_items.json")
    names, palette = list(table.names), table.palette.tolist()
    write_json({"classes": names, "palette": palette, "ignore_index": 255}, folder / "classes.json")
    warnings = [line for one in made for line in one.notes]
    shares = {
        split: dict(zip([*names, "unlabeled"], (found / max(found.sum(), 1)).round(6).tolist(), strict=True))
        for split, found in pixels.items()
    }
    report = {
        "source": str(options.source),
        "format": source.format,
        "recognized_by": source.evidence,
        "images": {split: len(items) for split, items in by_split.items()} | {"reference": len(references)},
        "shares": shares,
        "left_out": left_out[:_SHOWN],
        "left_out_count": len(left_out),
        "notes": [*source.notes, *notes, *warnings[:_SHOWN]],
        "notes_count": len(source.notes) + len(notes) + len(warnings),
        "options": recorded(options),
    }
    write_json(report, folder / "import.json")
    return report


def _line(item: Item, split: str, table: ClassTable, options: ImportOptions) -> dict[str, str]:
    seen = " ".join(name for name, count in zip(table.names, item.pixels[:-1].tolist(), strict=True) if count)
    prompt = options.prompt_template.format(classes=seen, name=item.name, split=split).strip()
    return {"source": item.mask, "target": item.image, "prompt": prompt}


def _write_lines(lines: Sequence[dict[str, str]], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _found(source: Source, labeled: Sequence[Scene]) -> str:
    return (
        f"format {source.format}, recognized by {source.evidence}: {len(labeled)} images with masks, "
        f"{len(source.table)} classes ({', '.join(source.table.names[:8])}{', ...' if len(source.table) > 8 else ''})"
    )


def _told(notes: Sequence[str]) -> list[str]:
    more = [f"  and {len(notes) - _TOLD} more notes, in import.json"] if len(notes) > _TOLD else []
    return [f"  {note}" for note in notes[:_TOLD]] + more


def _summary(report: dict[str, Any], source: Source, labeled: Sequence[Scene], options: ImportOptions) -> str:
    images = ", ".join(f"{count} {split}" for split, count in report["images"].items() if count)
    lines = [_found(source, labeled), *_told(report["notes"])]
    if report["left_out_count"]:
        lines.append(f"  {report['left_out_count']} left out, the first: {report['left_out'][0]}")
    bare = report["shares"]["train"]["unlabeled"]
    if source.format in DRAWN and options.background is None and bare > _MUCH:
        lines.append(f"  {bare:.0%} of the training pixels have no label; --background NAME makes a class of them")
    if not report["images"]["reference"]:
        lines.append("  no list to paint from: give a folder of unlabeled images with --references")
    look = "python -m scripts.check_data"
    return "\n".join([*lines, f"{options.out}: {images}", f"look it over: {spoken_as.get(look, look)} {options.out}"])


__all__ = ["Imported", "Picture", "import_data"]

"""Allotment: a list for a synthesis in which hard masks come more often, each with references that suit it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bands import Bands, read_bands_file, read_pixels
from common.classes import ClassTable, load_class_table
from common.config_options import ConfigOptions
from common.converters import integer, number, workers
from common.errors import InputError, spelled
from common.files import atomic_path, check_writable, write_json
from common.images import ImageError
from common.lists import locate, parse_line, read_lines
from common.metrics_file import read_metrics
from common.options import option, recorded
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files, listed, without_faults
from common.pixels import Pixels
from common.processes import cores
from common.rng import Stream, seed_from
from post_processing.allot_rule import (
    class_shares,
    images_of_masks,
    mix_distance,
    share_out,
    style,
    style_distance,
)
from post_processing.resample_inputs import class_pixels, in_order, read_class_loss
from post_processing.resample_rule import mask_hardness, ranks_of


@dataclass(frozen=True, kw_only=True)
class AllotOptions(ConfigOptions):
    """Masks and references, what is known of them, how many images are wanted, and where the list goes."""

    data_root: Path = option(metavar="DIR", help="folder that the lists' paths are relative to")
    masks: Path = option(
        metavar="FILE", help="list of masks, as of a training: source, prompt and, for the style, target"
    )
    references: Path = option(metavar="DIR", help="folder of reference images, below the data root")
    classes: str = option(metavar="TABLE", help="FUSU, GID, LoveDA, MBRSC or a classes.json")
    out: Path = option(metavar="FILE", help="list to write; its report lies beside it, as <name>_report.json")
    total: int = option(convert=integer(1, 10_000_000), help="images of all masks together")
    at_least: int = option(1, convert=integer(0), help="images of each mask, however easy")
    metrics: Path | None = option(
        None, help="a segmentor's metrics (JSON), of validation images: a class is as hard as its IoU is below 1"
    )
    real_loss: Path | None = option(
        None, help="or each class's mean loss on real images: a filter_stats.json or real_loss.json of filter.sh"
    )
    bands: Path | None = option(
        None,
        metavar="YAML",
        help="what is stated of the images' bands (`tisynth stats`; default: what the segmentor's config states)",
    )
    reference_masks: Path | None = option(None, metavar="DIR", help="masks of the references, of the same names")
    segmentor: tuple[str, ...] | None = option(
        None, nargs=2, metavar=("CONFIG", "WEIGHTS"), help="or an mmseg segmentor that says what they show"
    )
    references_per_mask: int = option(2, convert=integer(1), help="references that a mask's images are shared among")
    most_per_reference: int | None = option(
        None, convert=integer(1), help="images after one reference (default: twice what each has on average)"
    )
    style_weight: float = option(
        1.0,
        convert=number(-100, 100),
        help="of the distance in style to the mask's own image, beside the distance of class mixes; below 0: seek it",
    )
    not_among: tuple[Path, ...] = option(
        (), metavar="DIR", help="folders of test images: a reference with the same pixels is refused"
    )
    first_seed: int = option(0, convert=integer(0, 2**61), help="of each mask's images")
    seed: int = option(0, convert=integer(0), help="of the choice among references that suit a mask equally well")
    skip_invalid: bool = option(False, help="leave out references that are damaged or among test images")
    follow_links: bool = option(False, help="take files outside --data-root that links below it lead to")
    num_workers: int = option(min(4, cores()), convert=workers, help="processes that read images")
    device: str = option("auto", help="of the segmentor: auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("metrics", "real_loss"), ("reference_masks", "segmentor")):
            if getattr(self, one) and getattr(self, other):
                raise InputError(f"‹{one}› and ‹{other}›: give one of them")


# Files of images -> pixels of each class that a segmentor finds in each, int64 (N, C).
FoundClasses = Callable[[Sequence[Path]], NDArray[Any]]


@dataclass(eq=False)
class Masks:
    """The masks of a list.

    Attributes:
        lines: as the list has them.
        files: the masks.
        pixels: of each class in each, int64 (M, C).
        styles: of their own images, (2 bands,); None for one without.
        hardness: float64 (M,).
        ranks: 1 (easiest) to M, or 1 for all where nothing is known.
    """

    lines: list[dict[str, Any]]
    files: list[Path]
    pixels: NDArray[Any]
    styles: list[NDArray[Any] | None]
    hardness: NDArray[Any]
    ranks: NDArray[Any]


@dataclass(eq=False)
class References:
    """References that may be used.

    Attributes:
        names: paths as lists have them, relative to the data root.
        styles: (R, 2 bands).
        mixes: share of each class (R, C); None where nothing is known of what they show.
        left_out: a line for each that is not used.
    """

    names: list[str]
    styles: NDArray[Any]
    mixes: NDArray[Any] | None
    left_out: list[str] = field(default_factory=list)


def allot(options: AllotOptions, found: FoundClasses | None = None, bands: Bands | None = None) -> str:
    """Checks all files, allots, and writes list and report.

    Args:
        options: what, of what, and where to.
        found: what the segmentor that the options name finds in images.
        bands: what its config states of images, for where the options state nothing; None for three of 8 bits.

    Returns:
        What was done, in a line.

    Raises:
        InputError: a faulty list or file, numbers that do not go together, or a reference that is a test image.
    """
    check_writable(options.out.parent, "‹out›")
    table = load_class_table(options.classes)
    bands = bands if options.bands is None else read_bands_file(options.bands)
    masks = _masks(options, table, bands)
    references = _references(options, table, found, bands)
    if options.total < options.at_least * len(masks.files):
        raise InputError(
            f"‹total› {options.total}: less than {options.at_least} of each of {len(masks.files)} masks; ‹at_least› 0 "
            "leaves the easiest out"
        )
    counts = images_of_masks(masks.ranks, options.total, options.at_least)
    chosen = _choose(options, masks, references, counts)
    lines = []
    for line, of_mask in zip(masks.lines, chosen, strict=True):
        seed = options.first_seed
        for index, images in sorted(of_mask.items()):
            seeds = list(range(seed, seed + images))
            lines.append({**line, "ref_image": references.names[index], "seeds": seeds})
            seed += images
    with atomic_path(options.out) as path:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_json(_report(options, masks, references, chosen), options.out.with_name(f"{options.out.stem}_report.json"))
    used = len({index for of_mask in chosen for index in of_mask})
    return (
        f"{options.out}: {options.total} images of {np.count_nonzero(counts)} masks ({counts.min()} to {counts.max()} "
        f"each) after {used} of {len(references.names)} references"
    )


def _masks(options: AllotOptions, table: ClassTable, bands: Bands | None) -> Masks:
    lines, files, images = [], [], []
    for number_, text in read_lines(options.masks):
        try:
            line = parse_line(text)
            if not isinstance(line.get("source"), str):
                raise ValueError("field source: needs the path of a mask")
            files.append(locate(line["source"], options.data_root, options.follow_links))
            target = line.get("target")
            images.append(locate(target, options.data_root, options.follow_links) if target else None)
        except ValueError as error:
            raise InputError(f"{options.masks} line {number_}: {error}") from error
        lines.append(line)
    if not lines:
        raise InputError(f"{options.masks}: no items; write one JSON object a line")
    if twice := [name for name, count in Counter(file.stem for file in files).items() if count > 1]:
        raise InputError(f"{options.masks}: several masks are named {listed(twice)}; rename them, or name each once")
    pixels = class_pixels(files, table.labels, max(1, options.num_workers))
    with ThreadPoolExecutor(max(1, options.num_workers)) as pool:
        styles = list(pool.map(lambda path: None if path is None else _style(read_pixels(path, bands)), images))
    hardness = _class_hardness(options, table.names)
    if hardness is None:
        return Masks(lines, files, pixels, styles, np.zeros(len(files)), np.ones(len(files), dtype=np.int64))
    of_masks = mask_hardness(pixels, hardness)
    by_name = np.array(sorted(range(len(files)), key=lambda i: files[i].name))  # equally hard ones follow their names
    ranks = np.empty(len(files), dtype=np.int64)
    ranks[by_name] = ranks_of(of_masks[by_name])
    return Masks(lines, files, pixels, styles, of_masks, ranks)


def _class_hardness(options: AllotOptions, classes: Sequence[str]) -> NDArray[Any] | None:
    """How hard each class is (C,), NaN where it is not known; None where nothing is."""
    if options.real_loss is not None:
        return read_class_loss(options.real_loss, classes)
    if options.metrics is None:
        return None
    scores = {name: entry.IoU for name, entry in read_metrics(options.metrics).of_shown().classes.items()}
    return np.array([np.nan if score is None else 1 - score for score in in_order(scores, classes)])


def _references(
    options: AllotOptions, table: ClassTable, found: FoundClasses | None, bands: Bands | None
) -> References:
    root = Path(os.path.abspath(options.data_root))  # noqa: PTH100 (links are to stay)
    files = list(list_files(options.references, IMAGE_SUFFIXES, "‹references›").values())
    names = []
    for file in files:
        name = os.path.relpath(os.path.abspath(file), root)  # noqa: PTH100
        try:
            locate(name, options.data_root, options.follow_links)
        except ValueError as error:
            raise InputError(f"‹references› {options.references}: {error}") from error
        names.append(Path(name).as_posix())
    threads = max(1, options.num_workers)
    folders = [list_files(folder, IMAGE_SUFFIXES, "‹not_among›").values() for folder in options.not_among]
    tests = [file for folder in folders for file in folder]
    with ThreadPoolExecutor(threads) as pool:
        hashes = pool.map(lambda file: pixels_hash(read_pixels(file, bands).values), tests)
        of_tests = dict(zip(hashes, tests, strict=True))
        facts = list(pool.map(lambda file: _facts(file, of_tests, bands), files))
    faults = [fact if isinstance(fact, str) else None for fact in facts]
    kept, left_out = without_faults(list(range(len(files))), faults, "‹references›", options.skip_invalid)
    left = [files[i] for i in kept]
    styles = np.array([facts[i] for i in kept])
    mixes = None
    if options.reference_masks is not None:
        masks = list_files(options.reference_masks, MASK_SUFFIXES, "‹reference_masks›")
        if missing := [file.name for file in left if file.stem not in masks]:
            raise InputError(f"‹reference_masks› {options.reference_masks}: no mask of {listed(missing)}")
        mixes = class_shares(class_pixels([masks[file.stem] for file in left], table.labels, threads))
    elif options.segmentor is not None:
        if found is None:
            raise InputError("‹segmentor›: none is open: give allot what finds classes in images")
        mixes = class_shares(found(left))
    return References([names[i] for i in kept], styles, mixes, left_out)


def pixels_hash(image: NDArray[Any]) -> str:
    """Stands for an image's pixels (H, W, bands), whatever file and format they come from."""
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()


def _style(pixels: Pixels) -> NDArray[Any]:
    """See ``style``, of pixels with data."""
    return style(pixels.values[pixels.valid])


def _facts(file: Path, of_tests: dict[str, Path], bands: Bands | None) -> NDArray[Any] | str:
    """A reference's style; or what is wrong with it."""
    try:
        pixels = read_pixels(file, bands)
    except ImageError as error:
        return str(error)
    if of_tests and (same := of_tests.get(pixels_hash(pixels.values))):
        return f"{file}: has the pixels of {same}, which is a test image; remove it from the references"
    return _style(pixels)


def _choose(options: AllotOptions, masks: Masks, references: References, counts: NDArray[Any]) -> list[dict[int, int]]:
    """Images by reference, of each mask; the hardest chooses first."""
    several = len(references.names)
    most = options.most_per_reference or -(-2 * options.total // several)
    if most * several < options.total:
        raise InputError(
            f"‹most_per_reference› {most}: {several} references give {most * several} images, not {options.total}"
        )
    left = np.full(several, most, dtype=np.int64)
    chosen: list[dict[int, int]] = [{} for _ in masks.files]
    for i in sorted(range(len(masks.files)), key=lambda i: (-masks.ranks[i], masks.files[i].name)):
        cost = sum(_distances(options, masks, references, i).values(), np.zeros(several))
        if (own := masks.styles[i]) is not None:  # a mask's own image says nothing new: its own is the last reference
            cost = np.where((references.styles == own).all(axis=1), np.inf, cost)
        # equal costs in an order that belongs to the mask alone
        draws = np.random.default_rng(seed_from(options.seed, Stream.ALLOTMENT, masks.files[i].name)).random(several)
        order = np.lexsort((draws, np.round(cost, 12))).tolist()
        chosen[i] = share_out(order, left, int(counts[i]), options.references_per_mask)
    return chosen


def _distances(options: AllotOptions, masks: Masks, references: References, i: int) -> dict[str, NDArray[Any]]:
    """What is known of how far each reference is from mask ``i``, each (R,)."""
    distances = {}
    if references.mixes is not None:
        distances["mix"] = mix_distance(class_shares(masks.pixels[i : i + 1])[0], references.mixes)
    own = masks.styles[i]
    if own is not None and options.style_weight:
        distances["style"] = options.style_weight * style_distance(own, references.styles)
    return distances


def _report(
    options: AllotOptions, masks: Masks, references: References, chosen: Sequence[dict[int, int]]
) -> dict[str, Any]:
    """Of each mask its hardness, rank and references; of each reference its images."""
    of_masks, of_references = {}, dict.fromkeys(references.names, 0)
    for i, of_mask in enumerate(chosen):
        distances = _distances(options, masks, references, i)
        used = {}
        for index, images in sorted(of_mask.items()):
            of_references[references.names[index]] += images
            far = {name: round(float(values[index]), 5) for name, values in distances.items()}
            used[references.names[index]] = {"images": images, **far}
        of_masks[masks.lines[i]["source"]] = {
            "hardness": round(float(masks.hardness[i]), 6),
            "rank": int(masks.ranks[i]),
            "images": sum(of_mask.values()),
            "references": used,
        }
    left_out = [spelled(line) for line in references.left_out]
    return {"options": recorded(options), "masks": of_masks, "references": of_references, "left_out": left_out}

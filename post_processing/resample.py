"""Re-sampling: filtered images that help become a training set beside the real ones, by one of FreeMask's two rules."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.bands import see_any
from common.classes import load_class_table, plain_name
from common.command import note
from common.converters import integer, number
from common.errors import InputError, spelled
from common.files import atomic_path, check_writable, inside, only_writer, room_for, write_json
from common.images import Labels
from common.metrics_file import read_metrics
from common.options import Options, option, recorded
from common.pairing import listed
from common.processes import cores
from common.schema import one_line
from common.sound_pairs import SoundPairs, sound_pairs
from post_processing.filter_state import STATS, classes_of, label_of_id
from post_processing.resample_choice import Choice, by_class, by_hardness
from post_processing.resample_inputs import (
    classes_by_name,
    classes_by_score,
    pixels_by_filter,
    pixels_of_masks,
    read_class_loss,
)
from post_processing.resample_report import resample_figure, resample_statistics
from post_processing.resampled_folders import fill_folders

OPTIONS_OF_RULE = {
    "class": ("inaccurate", "metrics", "below", "worst", "min_valid", "min_pixels"),
    "hardness": ("real_loss", "syn_mask_path", "seed"),
}
PUBLISHED_CLASSES = "FUSU"
PUBLISHED_POOR = ("agriculture construction", "special", "public construction", "commercial land", "grass")


@dataclass(frozen=True, kw_only=True)
class ResampleOptions(Options):
    """Which filtered images to take, by which rule, and where to put those that are kept."""

    filtered_mask_path: Path = option(help="masks that filter.sh wrote")
    syn_img_path: Path = option(help="synthesized images of the same names")
    out_dir: Path = option(help="folder for resampled_img, resampled_label, report")
    rule: str = option("class", choices=tuple(OPTIONS_OF_RULE), help="which images are kept")
    classes: str | None = option(
        None, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json (default: FUSU, as published)"
    )
    inaccurate: str | None = option(
        None,
        help="poorly recognized classes by name, with commas between them (default: none; without --classes, as "
        f"published, {', '.join(PUBLISHED_POOR)})",
    )
    metrics: Path | None = option(None, help="a segmentor's metrics (JSON), to find them by IoU")
    below: float | None = option(
        None, convert=number(0, 1), help="with --metrics: classes with an IoU below this, 0..1"
    )
    worst: int | None = option(None, convert=integer(1), help="with --metrics: this many classes with the smallest IoU")
    min_valid: float = option(0.8, convert=number(0, 1), help="share of pixels that must survive, 0..1, as published")
    min_pixels: int = option(1, convert=integer(1), help="pixels that make a class count as shown")
    real_loss: Path | None = option(
        None,
        help="with --rule hardness: each class's mean loss on real images, a filter_stats.json or real_loss.json "
        f"(default: {STATS} in --filtered-mask-path)",
    )
    syn_mask_path: Path | None = option(
        None,
        help="with --rule hardness: the masks that the images were made of (default: their pixels as "
        f"{STATS} in --filtered-mask-path counts them)",
    )
    seed: int = option(0, convert=integer(0), help="with --rule hardness: of the draws")
    weight_map_path: Path | None = option(
        None, help="folder of the masks' weight maps, as filter.sh --treatment weight writes it; they go along"
    )
    copy: bool = option(False, help="copy files, where hard links would share them")
    several_maps: bool = option(False, help="GeoTIFFs need not share one coordinate reference system")
    skip_invalid: bool = option(False, help="leave out files that are unpaired or damaged")
    num_workers: int = option(
        cores(), convert=integer(1, 256), help="processes (of few files: threads) that read files, threads that copy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for rule, names in OPTIONS_OF_RULE.items():
            if other := [name for name in names if rule != self.rule and getattr(self, name) != defaults[name]]:
                raise InputError(
                    f"‹{other[0]}›: belongs to ‹rule› {rule}, this is ‹rule› {self.rule}; leave out one of them"
                )
        if self.inaccurate and self.metrics:
            raise InputError("‹inaccurate› and ‹metrics›: give one of them")
        if self.metrics and (self.below is None) == (self.worst is None):
            raise InputError("‹metrics›: say which classes count, with ‹below› or ‹worst›")
        if not self.metrics and (self.below is not None or self.worst is not None):
            raise InputError("‹below› and ‹worst› need ‹metrics› FILE")


@dataclass(frozen=True)
class Resampled:
    """What was kept.

    Attributes:
        kept: names of the images.
        statistics: what ``resample_stats.json`` holds.
        summary: the same in a line.
    """

    kept: list[str]
    statistics: dict[str, Any]
    summary: str


def resample(options: ResampleOptions) -> Resampled:
    """Checks all files, chooses, fills the folders for joint training, reports.

    Raises:
        InputError: a file is unpaired or damaged, the options do not fit the files, or the output folder holds
            something else.
    """
    options = with_published_classes(options)
    out = options.out_dir
    for folder in (options.filtered_mask_path, options.syn_img_path):
        if inside(out, folder):
            raise InputError(f"‹out_dir› {out}: lies inside {folder}; name another folder")
    with room_for("‹out_dir›", out):
        check_writable(out, "‹out_dir›")
        with only_writer(out, "‹out_dir›"):
            return _resample(options)


def with_published_classes(options: ResampleOptions) -> ResampleOptions:
    """Without a class table: FUSU's, with the classes that the published script has built in; says so.

    Raises:
        InputError: the filter worked with other classes than FUSU's; names the first.
    """
    if options.classes is not None:
        return options
    filtered, table = options.filtered_mask_path, load_class_table(PUBLISHED_CLASSES)
    known = {plain_name(name) for name in table.names}
    if other := [name for name in classes_of(filtered) or () if plain_name(name) not in known]:
        raise InputError(
            f"‹classes›: not given, and {filtered} was filtered with a class {one_line(other[0], 60)} "
            f"that is none of {PUBLISHED_CLASSES}'s; name its class table"
        )
    poor, named = options.inaccurate, ""
    if not (options.inaccurate or options.metrics or options.rule != "class"):
        poor, named = ",".join(PUBLISHED_POOR), f", poorly recognized {', '.join(PUBLISHED_POOR)}"
    note(f"classes of {PUBLISHED_CLASSES}{named}: the published defaults; see ‹classes›, ‹inaccurate›", sys.stdout)
    return dataclasses.replace(options, classes=PUBLISHED_CLASSES, inaccurate=poor)


def poor_classes(options: ResampleOptions, classes: list[str]) -> list[int]:
    """Ids of the poorly recognized classes that the options name; none where no option does."""
    if options.inaccurate:
        names = [name.strip() for name in options.inaccurate.split(",") if name.strip()]
        return classes_by_name(names, classes)
    if not options.metrics:
        return []
    scores = {name: entry.IoU for name, entry in read_metrics(options.metrics).of_shown().classes.items()}
    return classes_by_score(scores, classes, options.below, options.worst)


def _resample(options: ResampleOptions) -> Resampled:
    table = load_class_table(options.classes or PUBLISHED_CLASSES)
    classes, filtered = list(table.names), options.filtered_mask_path
    poor = poor_classes(options, classes)
    hardness = options.rule == "hardness"
    mean_loss = read_class_loss(options.real_loss or filtered / STATS, classes) if hardness else None
    of_id = label_of_id(filtered)
    labels = table.labels if of_id is None else Labels(len(classes), of_id=of_id)
    named = ("‹syn_img_path›", "‹filtered_mask_path›")
    how: dict[str, Any] = {"skip_invalid": options.skip_invalid, "several_maps": options.several_maps}
    found = sound_pairs(options.syn_img_path, filtered, named, labels, look=see_any, workers=options.num_workers, **how)
    if found.left_out:
        note(f"{len(found.left_out)} files left out: {listed(found.left_out)}")
    if mean_loss is None:
        names = ", ".join(classes[c] for c in poor) or "none named (‹inaccurate› or ‹metrics›)"
        note(f"poorly recognized classes: {names}", sys.stdout)
        choice = by_class(found.checked, poor, options.min_valid, options.min_pixels)
    else:
        masks = (
            pixels_of_masks(options.syn_mask_path, found.pairs, labels, options.num_workers)
            if options.syn_mask_path
            else pixels_by_filter(filtered, found.pairs, classes)
        )
        choice = by_hardness(found.pairs, classes, mean_loss, masks, options.seed)
    kept = [pair for pair, reason in zip(found.pairs, choice.reasons, strict=True) if reason]
    sizes = {
        pair.name: seen.size
        for pair, seen in zip(found.pairs, found.checked, strict=True)
        if seen.image_size != seen.size
    }
    fill_folders(options.out_dir, kept, sizes, options.copy, options.num_workers, options.weight_map_path)
    statistics = _write_report(options, found, classes, choice)
    summary = f"{len(kept)} of {len(found.pairs)} images kept in {options.out_dir}: {choice.summary}"
    return Resampled([pair.name for pair in kept], statistics, summary)


def _write_report(options: ResampleOptions, found: SoundPairs, classes: list[str], choice: Choice) -> dict[str, Any]:
    """Writes resample_stats.json and resample_stats.svg; returns what the first holds."""
    pixels = np.array([seen.pixels for seen in found.checked])  # (images, C)
    areas = np.array([seen.size[0] * seen.size[1] for seen in found.checked])
    reasons = choice.reasons
    statistics = resample_statistics(classes, pixels, areas, reasons, choice.poor, choice.possible_reasons)
    if choice.masks:
        statistics["masks"] = choice.masks
    images = {
        pair.name: {"kept": reason, "valid_share": round(float(row.sum() / area), 4)}
        for pair, reason, row, area in zip(found.pairs, reasons, pixels, areas, strict=True)
    }
    skipped = [spelled(line) for line in found.left_out]
    report = {"options": recorded(options), "skipped": skipped, **statistics, "image": images}
    write_json(report, options.out_dir / "resample_stats.json", indent=None)
    with atomic_path(options.out_dir / "resample_stats.svg") as path:
        resample_figure(path, statistics)
    return report

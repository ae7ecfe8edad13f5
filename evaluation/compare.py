"""Do synthesized images help? Segmentors trained with and without them, over several seeds, compared on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.classes import load_class_table
from common.config_options import ConfigOptions
from common.converters import integer, pixels
from common.errors import InputError
from common.files import check_writable, only_writer, room_for
from common.options import option, recorded
from common.schema import one_line
from evaluation.comparison_page import gallery_of, read_svg, write_comparison

Records = Callable[[Path], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ConfigOptions):
    """Both kinds of training, their test sets and seeds, and what the page shows."""

    config: str = option(positional=True, help="mmseg config of the baseline, trained on real images")
    joint_config: str | None = option(None, help="config of the joint training (default: the same, with --synthesized)")
    synthesized: str | None = option(None, help="folder with resampled_img and resampled_label")
    repeat: int = option(10, convert=integer(1, 10**6), help="how often a real pair counts in joint training")
    data_root: str | None = option(None, help="data set's folder (default: the config's)")
    classes: str | None = option(None, help="class table, by name or path to a classes.json (default: the config's)")
    splits: tuple[str, ...] = option(("test",), help="test sets: img_<split>, label_<split>")
    seeds: int = option(5, convert=integer(1, 1000), help="number of seeds: 0, 1, ...")
    max_iters: int | None = option(
        None, convert=integer(1), help="iterations of every training (default: the config's)"
    )
    crop_size: int | None = option(None, convert=pixels, help="side of training crops (default: the config's)")
    pretrained: str | None = option(None, help="backbone weights: a file, or none (default: the config's)")
    out_dir: Path = option(help="folder for runs, comparison.json and the page")
    jobs: int = option(1, convert=integer(1, 256), help="trainings at once on this machine")
    syn_img_path: Path | None = option(None, help="gallery: synthesized images, with samples.jsonl")
    mask_path: Path | None = option(None, help="gallery: masks that they were synthesized from")
    filtered_mask_path: Path | None = option(None, help="gallery: masks that filter.sh wrote")
    evaluation: Path | None = option(None, help="scripts/evaluate_samples.py's --out-dir, to show its figure")
    gallery: int = option(12, convert=integer(0, 1000), help="images in the gallery, evenly spread over all")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.joint_config or self.synthesized):
            raise InputError("give ‹synthesized› DIR (resample.sh's --out-dir), or ‹joint_config›")
        for name in ("syn_img_path", "mask_path", "filtered_mask_path", "evaluation"):
            folder = getattr(self, name)
            if folder and not folder.is_dir():
                raise InputError(f"‹{name}› {folder}: no such folder")
        if self.gallery and self.syn_img_path and not self.mask_path:
            raise InputError("‹syn_img_path›: the gallery needs ‹mask_path› too")
        for split in self.splits:
            if self.splits.count(split) > 1 or split in ("", ".", "..") or "/" in split or not split.isprintable():
                raise InputError(
                    f"‹splits› {one_line(split)}: name each test set once, by what follows img_ and label_"
                )


def compare_trainings(options: CompareOptions, records: Records | None = None) -> dict[str, dict[str, Any]]:
    """Trains and tests what is left to do, and writes comparison.json and comparison.html.

    Args:
        options: of the comparison.
        records: reads what synthesis recorded of a folder's images, by name, for the gallery.

    Returns:
        The comparisons by split, see ``evaluation.comparison.compare``.

    Raises:
        InputError: an unfair comparison; runs that are identical, failed, or were made from something else.
    """
    from evaluation import trainings  # torch and mmseg take seconds to load

    configs = trainings.training_configs(options)
    out = check_writable(options.out_dir, "‹out_dir›")
    with room_for("‹out_dir›", out), only_writer(out, "‹out_dir›"):
        comparison = trainings.comparison_of(options, configs)
        comparison.check()
        # before the work, as damaged pictures should not end it
        pictures, reports = _gallery(options, trainings.class_table_of(configs), records), _reports(options)
        if not comparison.is_done():
            trainings.check_data(options, configs)
        outcomes = comparison.run(options.jobs)
        made_from = comparison.made_from["joint"]
        facts = {key: str(value) for key, value in recorded(options).items() if value not in (None, [])}
        facts["max_iters"] = f"{made_from['max_iters']}, of {made_from['batch_size']} images, both trainings"
        runs = {kind: [outcome.metrics for outcome in done] for kind, done in outcomes.items()}
        return write_comparison(out, runs, facts, {**made_from, **comparison.test_sets}, pictures, reports)


def _gallery(options: CompareOptions, table: str | None, records: Records | None) -> str:
    """The page's gallery, if asked for."""
    if not (options.gallery and options.syn_img_path and options.mask_path):
        return ""
    classes = options.classes or table
    if classes is None:
        raise InputError("‹syn_img_path›: the gallery needs ‹classes› for its colors")
    return gallery_of(
        options.syn_img_path,
        options.mask_path,
        options.filtered_mask_path,
        options.gallery,
        load_class_table(classes),
        records(options.syn_img_path) if records else {},
        options.data_root,
    )


def _reports(options: CompareOptions) -> dict[str, bytes]:
    """Figures that other commands wrote, by title."""
    filtered, resampled, evaluated = options.filtered_mask_path, options.synthesized, options.evaluation
    figures = {
        "What the filter kept": filtered and filtered / "filter_stats.svg",
        "What re-sampling kept": resampled and Path(resampled) / "resample_stats.svg",
        "The synthesized images by themselves": evaluated and evaluated / "evaluation.svg",
    }
    return {title: read_svg(path) for title, path in figures.items() if isinstance(path, Path) and path.is_file()}

"""Do synthesized images help, and more than free tricks do? Segmentors over several seeds, compared on one page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.classes import load_class_table
from common.command import note
from common.config_options import ConfigOptions
from common.converters import integer, number, pixels
from common.errors import InputError
from common.files import check_writable, only_writer, room_for
from common.options import option, recorded
from common.schema import one_line
from common.segmentor_options import PRECISIONS
from evaluation.comparison_page import Compared, gallery_of, read_svg, write_comparison
from evaluation.recipes import PARTS, Recipe, recipes_of

SEEDS = 5  # fewer make an example, not a verdict
_arms, _curves = "arms: what is compared with real images alone", "curves"

Records = Callable[[Path], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ConfigOptions):
    """The arms and their data, their test sets and seeds, and what the page shows."""

    config: str = option(positional=True, help="mmseg config of the baseline, trained on real images")
    joint_config: str | None = option(None, help="config of the joint training (default: the same, with --synthesized)")
    synthesized: str | None = option(None, help="folder with resampled_img and resampled_label")
    arms: tuple[str, ...] = option(
        ("real", "joint"),
        group=_arms,
        help="trainings of equal iterations on the same real images (synthesized: on none): parts of "
        f"{', '.join(PARTS)} with + between them, e.g. joint+fda; joint:NAME takes the images of --others",
    )
    others: tuple[str, ...] = option(
        (), metavar="NAME=DIR", group=_arms, help="further folders of synthesized images, for arms joint:NAME"
    )
    references: Path | None = option(
        None, group=_arms, help="unlabeled images for fda, color_transfer and self_training; no test images"
    )
    fda_beta: float | None = option(
        None, convert=number(0, 0.5), group=_arms, help="fda: share of frequencies swapped (default: 0.01)"
    )
    augment_prob: float | None = option(
        None, convert=number(0, 1), group=_arms, help="fda, color_transfer, copy_paste: how often (default: 0.5)"
    )
    rare_classes: tuple[str, ...] = option(
        (), group=_arms, help="copy_paste: classes by name (default: those far below an even share)"
    )
    sure: float = option(
        0.9, convert=number(0, 1), group=_arms, help="self_training: probability that a pseudo-label needs"
    )
    self_repeat: int | None = option(
        None,
        convert=integer(1, 10**6),
        group=_arms,
        help="self_training: how often a real pair counts beside pseudo-labels (default: so that they are half)",
    )
    pretrain_share: float = option(
        0.5, convert=number(0, 1), group=_arms, help="pretrain: share of the iterations on synthesized images alone"
    )
    amounts: tuple[float, ...] = option(
        (), convert=number(0), group=_curves, help="joint with so many synthesized images for each real one, nested"
    )
    real_share: tuple[float, ...] = option(
        (), convert=number(0, 1), group=_curves, help="real and joint with this part of the real images, and of masks"
    )
    repeat: int = option(10, convert=integer(1, 10**6), help="how often a real pair counts in joint training")
    data_root: str | None = option(None, help="data set's folder (default: the config's)")
    classes: str | None = option(None, help="class table, by name or path to a classes.json (default: the config's)")
    bands: Path | None = option(
        None, metavar="YAML", help="what is stated of the images' bands (`tisynth stats`; default: the config's)"
    )
    rgb: tuple[int, ...] | None = option(
        None,
        convert=integer(1, 16),
        nargs=3,
        metavar="BAND",
        help="gallery: bands that it shows as red, green and blue (default: as stated)",
    )
    several_maps: bool = option(False, help="GeoTIFFs need not share one coordinate reference system")
    splits: tuple[str, ...] = option(("test",), help="test sets: img_<split>, label_<split>")
    seeds: int = option(5, convert=integer(1, 1000), help="number of seeds: 0, 1, ...")
    max_iters: int | None = option(
        None, convert=integer(1), help="iterations of every training (default: the config's)"
    )
    crop_size: int | None = option(None, convert=pixels, help="side of training crops (default: the config's)")
    precision: str | None = option(
        None, choices=PRECISIONS, help="of every training: 32 bit or bf16 (default: the config's)"
    )
    pretrained: str | None = option(None, help="backbone weights: a file, or none (default: the config's)")
    out_dir: Path = option(help="folder for runs, comparison.json and the page")
    jobs: int = option(1, convert=integer(1, 256), help="trainings at once on this machine")
    syn_img_path: Path | None = option(None, help="gallery: synthesized images, with samples.jsonl")
    mask_path: Path | None = option(None, help="gallery: masks that they were synthesized from")
    filtered_mask_path: Path | None = option(None, help="gallery: masks that filter.sh wrote")
    evaluation: Path | None = option(None, help="scripts/evaluate_samples.py's --out-dir, to show its figure")
    gallery: int = option(12, convert=integer(0, 1000), help="images in the gallery, evenly spread over all")
    title: str | None = option(None, help="of the page; one of an example or of few seeds says so")
    plan: bool = option(False, help="say how many trainings there are, and how long they take; train nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        painted = any(recipe.source and not recipe.folder for recipe in recipes_of(self.arms))
        if (painted or self.amounts or self.real_share) and not (self.joint_config or self.synthesized):
            raise InputError("give ‹synthesized› DIR (resample.sh's --out-dir), or ‹joint_config›")
        self.folders()
        for name in ("amounts", "real_share"):
            values = getattr(self, name)
            if any(value <= 0 for value in values) or len({*values}) < len(values):
                raise InputError(f"‹{name}›: write each number once, above 0")
        said = (self.title or "example").lower()
        if "example" not in said and (self.seeds < SEEDS or "demonstration" in said):
            raise InputError(
                f'‹title›: a demonstration, or fewer than {SEEDS} seeds, is no verdict: say "example" in it'
            )
        for name in ("syn_img_path", "mask_path", "filtered_mask_path", "evaluation", "references"):
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

    def folders(self) -> dict[str, str]:
        """Folders of synthesized images by the name that arms have for them; that of ``synthesized`` is empty.

        Raises:
            InputError: ``others`` are not written as NAME=DIR.
        """
        found = {"": self.synthesized} if self.synthesized else {}
        for word in self.others:
            name, _, folder = word.partition("=")
            if not (name.replace("_", "").isalnum() and name.isascii() and folder) or name in found:
                raise InputError(f"‹others› {one_line(word, 80)}: write NAME=DIR, each name once")
            found[name] = folder
        return found

    def heading(self) -> str:
        """The page's title, which says so where it is an example."""
        if self.title:
            return self.title
        question = "Real images alone, or joined by synthesized ones?"
        recipes = recipes_of(self.arms)
        if len(recipes) > 2:
            question = "What helps a segmentor beside its real images?"
        if any(recipe.source == "synthesized" for recipe in recipes):
            question = "What helps a segmentor beside its real images, or in their place?"
        return question if self.seeds >= SEEDS else f"Example of {self.seeds} seed{'s' * (self.seeds > 1)}: {question}"


def compare_trainings(options: CompareOptions, records: Records | None = None) -> dict[str, dict[str, Any]]:
    """Trains and tests what is left to do, and writes comparison.json and comparison.html.

    Args:
        options: of the comparison.
        records: reads what synthesis recorded of a folder's images, by name, for the gallery.

    Returns:
        The comparisons by split, see ``evaluation.comparison_page.write_comparison``; nothing for a plan.

    Raises:
        InputError: an unfair comparison; runs that are identical, failed, or were made from something else.
    """
    from evaluation import trainings  # torch and mmseg take seconds to load

    arms = trainings.arms_of(options)
    configs = trainings.training_configs(options, arms)
    out = check_writable(options.out_dir, "‹out_dir›")
    with room_for("‹out_dir›", out), only_writer(out, "‹out_dir›"):
        comparison = trainings.comparison_of(options, arms, configs)
        comparison.check()
        for line in comparison.plan(options.jobs, each=options.plan):
            note(line, sys.stdout)
        if options.plan:
            return {}
        # before the work, as damaged pictures should not end it
        pictures, reports = _gallery(options, configs, records), _reports(options)
        if not comparison.is_done():
            trainings.check_data(options, arms, configs)
        outcomes = comparison.run(options.jobs)
        made_from = comparison.made_from[_shown(arms)]
        facts = {
            key: str(value)
            for key, value in recorded(options).items()
            if value is not False and value not in (None, [])
        }
        facts["max_iters"] = f"{made_from['max_iters']}, of {made_from['batch_size']} images, every training"
        curves = trainings.curve_recipes(options, arms["baseline"].training)
        return write_comparison(
            out,
            Compared(
                title=options.heading(),
                runs={kind: [outcome.metrics for outcome in done] for kind, done in outcomes.items()},
                arms=[(recipe, comparison.cost(recipe.kind)) for recipe in recipes_of(options.arms)[1:]],
                curves=_curves_of(options, curves),
                facts=facts,
                made_from={**made_from, **comparison.test_sets},
                pictures=pictures,
                reports=reports,
            ),
        )


def _shown(arms: Mapping[str, Any]) -> str:
    """The arm whose files the page names: the joint one, or else the first with synthesized images."""
    painted = [kind for kind, arm in arms.items() if arm.recipe.source]
    return "joint" if "joint" in arms else next(iter(painted), "baseline")


def _curves_of(
    options: CompareOptions, curves: Mapping[str, Sequence[Recipe]]
) -> dict[str, list[tuple[float, Recipe]]]:
    """By what varies: its values in rising order, and the arm with synthesized images of each."""
    values = {"amount": options.amounts, "share": options.real_share}
    return {
        varied: sorted(zip(values[varied], [recipe for recipe in points if recipe.source], strict=True))
        for varied, points in curves.items()
    }


def _gallery(options: CompareOptions, configs: dict[str, Any], records: Records | None) -> str:
    """The page's gallery, if asked for."""
    from evaluation import trainings  # as above

    if not (options.gallery and options.syn_img_path and options.mask_path):
        return ""
    classes, bands = options.classes or trainings.class_table_of(configs), trainings.bands_of_images(configs)
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
        None if bands is None else bands.showing(options.rgb),
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

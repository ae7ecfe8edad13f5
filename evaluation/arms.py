"""What each arm of a comparison trains: the same iterations on the same real images, and what its recipe adds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InputError
from common.pairing import IMAGE_SUFFIXES, list_files
from common.segmentor_options import PredictOptions, TrainOptions
from evaluation.compare import CompareOptions
from evaluation.recipes import JOINT, REAL, Recipe, recipes_of
from segmentation.provenance import data_files
from segmentation.training import training_config


@dataclass(frozen=True)
class Arm:
    """An arm's trainings, for every seed.

    Attributes:
        recipe: its parts.
        training: the one that is tested.
        pretraining: one before it, which it starts from; or none.
        teacher: how the real arm's segmentor of the same seed labels the references before it; or none.
    """

    recipe: Recipe
    training: TrainOptions
    pretraining: TrainOptions | None = None
    teacher: PredictOptions | None = None


def arms_of(options: CompareOptions) -> dict[str, Arm]:
    """All arms by kind: those that are named, then the points of curves that are none of them.

    Raises:
        InputError: an arm needs a folder that is not named, or more synthesized images than there are.
    """
    base = TrainOptions(
        config=options.config,
        cfg_options=options.cfg_options,
        trust_config=options.trust_config,
        data_root=options.data_root,
        classes=options.classes,
        bands=options.bands,
        several_maps=options.several_maps,
        max_iters=options.max_iters,
        crop_size=options.crop_size,
        precision=options.precision,
        pretrained=options.pretrained,
    )
    recipes = recipes_of(options.arms)
    for points in curve_recipes(options, base).values():
        recipes += [recipe for recipe in points if recipe not in recipes]
    return {recipe.kind: _arm(options, recipe, base) for recipe in recipes}


def curve_recipes(options: CompareOptions, base: TrainOptions) -> dict[str, list[Recipe]]:
    """The arms that a curve compares, by what varies: ``amount`` or ``share``; those of all images are plain arms.

    Args:
        options: of the comparison.
        base: the real arm's training, which says how many real images there are.

    Raises:
        InputError: an amount is more than there are synthesized images, or less than one; two amounts, or two shares,
            are of the same images.
    """
    curves: dict[str, list[Recipe]] = {}
    real = _real_images(base) if options.amounts or options.real_share else 0
    for name, counts in (
        ("amounts", [round(amount * real) for amount in options.amounts]),
        ("real_share", [max(1, round(share * real)) for share in options.real_share]),
    ):
        if twice := next((count for count in counts if counts.count(count) > 1), None):
            raise InputError(f"‹{name}›: two of them are {twice} of the same images; there are {real} real ones")
    if options.amounts:
        folder = Path(_folder(options, JOINT))
        images = len(list_files(folder / "resampled_img", IMAGE_SUFFIXES, "‹synthesized›"))
        for amount in options.amounts:
            if not 1 <= round(amount * real) <= images:
                raise InputError(
                    f"‹amounts› {amount:g}: {round(amount * real)} images for {real} real ones; {folder} has {images}"
                )
        curves["amount"] = [
            JOINT if round(amount * real) == images else replace(JOINT, amount=amount) for amount in options.amounts
        ]
    if options.real_share:
        shares = [None if round(share * real) == real else share for share in options.real_share]
        curves["share"] = [replace(recipe, share=share) for share in shares for recipe in (REAL, JOINT)]
    return curves


def _real_images(base: TrainOptions) -> int:
    """How many real images there are."""
    return len(data_files(training_config(base).train_dataloader)) // 2


def _folder(options: CompareOptions, recipe: Recipe) -> str:
    """The folder of a recipe's synthesized images."""
    folder = options.folders().get(recipe.folder)
    if folder is None:
        name = f"‹others› {recipe.folder}=DIR" if recipe.folder else "‹synthesized› DIR (resample.sh's --out-dir)"
        raise InputError(f"‹arms› {recipe.name}: name its images with {name}")
    return folder


def _arm(options: CompareOptions, recipe: Recipe, base: TrainOptions) -> Arm:
    training = replace(base, real_share=recipe.share)
    if recipe.tricks:
        training = replace(
            training,
            augment=recipe.tricks,
            fda_beta=options.fda_beta,
            augment_prob=options.augment_prob,
            rare_classes=options.rare_classes,
            references=options.references if {*recipe.tricks} - {"copy_paste"} else None,
        )
    pretraining = teacher = None
    if recipe.source == "synthesized":
        training = replace(
            training, synthesized=_folder(options, recipe), real_share=0.0, repeat=1, loss_weights=recipe.weights
        )
    elif recipe.source == "joint":
        own = recipe == JOINT and options.joint_config is not None
        training = replace(training, config=options.joint_config if own else training.config)
        if not (own and options.synthesized is None):
            training = replace(
                training,
                synthesized=_folder(options, recipe),
                repeat=options.repeat,
                synthesized_per_real=recipe.amount,
                loss_weights=recipe.weights,
            )
    elif recipe.source == "pretrain":
        iterations = training_config(base).train_cfg.get("max_iters")
        if iterations is None:
            raise InputError(f"{options.config}: an arm pretrain needs a number of iterations; name ‹max_iters›")
        first = round(options.pretrain_share * iterations)
        if not 1 <= first < iterations:
            raise InputError(f"‹pretrain_share› {options.pretrain_share:g}: of {iterations} iterations, none is left")
        pretraining = replace(
            training,
            synthesized=_folder(options, recipe),
            real_share=0.0,
            max_iters=first,
            loss_weights=recipe.weights,
            augment=(),
            references=None,
        )
        training = replace(training, max_iters=iterations - first)
    if recipe.self_training:
        if options.references is None:
            raise InputError(f"‹arms› {recipe.name}: name the images that it labels, with ‹references› DIR")
        if recipe.source != "joint":
            references = len(list_files(Path(options.references), IMAGE_SUFFIXES, "‹references›"))
            repeat = options.self_repeat or max(1, round(references / _real_images(base)))
            training = replace(training, repeat=repeat)
        teacher = PredictOptions(
            config=base.config,
            cfg_options=base.cfg_options,
            trust_config=base.trust_config,
            classes=base.classes,
            bands=base.bands,
            load_from="",  # the teacher's, of each seed
            images=Path(options.references),
            out=Path(),
            sure=options.sure,
            num_workers=(training_config(base).get("test_dataloader") or {}).get("num_workers", 0),
        )
    return Arm(recipe, training, pretraining, teacher)

"""What a training's options change in its data: steps of augmentation, parts of the images, pseudo-labels, weights."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from common.errors import InputError
from common.schema import one_line
from common.segmentor_options import TRICKS, TrainOptions
from segmentation.classes import class_table
from segmentation.labels import loads_masks
from segmentation.pixel_weights import set_loss_weights
from segmentation.trees import entries


def set_training_data(config: Config, options: TrainOptions) -> None:
    """Sets what the options name; what they leave out stays as the config has it.

    Args:
        config: changed in place, before validation is set.
        options: of the training.

    Raises:
        InputError: options that need one another; or the config has no MaskDataset, or no step that loads masks.
    """
    datasets = list(entries(config.get("train_dataloader") or {}, "MaskDataset"))
    values = {
        key: value if isinstance(value, float) else str(value)
        for key in ("real_share", "synthesized_per_real", "pseudo_images", "pseudo_masks")
        if (value := getattr(options, key)) is not None
    }
    if (values or options.augment or options.loss_weights) and not datasets:
        raise InputError(f"{config.filename}: its training has no MaskDataset, whose data options could change")
    for dataset in datasets:
        dataset.update(values)
        if options.augment:
            stated = next((step.get("bands") for step in entries(dataset.pipeline, "ReadImage")), None)
            _add_steps(config, dataset, augmentation_steps(options, dataset.classes, stated))
    if options.loss_weights:
        set_loss_weights(config)


def augmentation_steps(
    options: TrainOptions, classes: str, bands: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The steps that ``options.augment`` names, in their order in a pipeline.

    Args:
        options: of the training.
        classes: class table, which rare classes are named by.
        bands: what is stated of the images' bands; None for three of 8 bits.

    Raises:
        InputError: no references, or a class that the table does not have.
    """
    names = class_table(classes)["classes"]
    if unknown := [name for name in options.rare_classes if name not in names]:
        raise InputError(f"‹rare_classes› {one_line(unknown[0], 60)}: is none of {', '.join(names)}")
    styles = [trick for trick in options.augment if trick != "copy_paste"]
    if styles and options.references is None:
        raise InputError(f"‹augment› {styles[0]}: name the images whose style it takes, with ‹references› DIR")
    probability = {} if options.augment_prob is None else {"prob": options.augment_prob}
    beta = {} if options.fda_beta is None else {"beta": options.fda_beta}
    references = {"references": str(options.references)}
    steps: dict[str, dict[str, Any]] = {
        "copy_paste": {"type": "PasteRareClasses", "classes": [names.index(name) for name in options.rare_classes]},
        "color_transfer": {"type": "ColorTransfer", **references},
        "fda": {"type": "FourierStyle", **references, **beta},
    }
    stated = {} if bands is None else {"bands": bands}
    return [{**steps[trick], **probability, **stated} for trick in TRICKS if trick in options.augment]


def _add_steps(config: Config, dataset: Any, steps: list[dict[str, Any]]) -> None:
    """Puts steps behind the one that loads masks: they work on whole images, before these are scaled and cropped."""
    pipeline = list(dataset.pipeline)
    loading = [index for index, step in enumerate(pipeline) if loads_masks(step)]
    if not loading:
        raise InputError(f"{config.filename}: ‹augment›: its pipeline has no step that loads masks")
    dataset.pipeline = [*pipeline[: loading[-1] + 1], *steps, *pipeline[loading[-1] + 1 :]]

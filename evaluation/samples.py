"""How good synthesized images are, without training: agreement with their masks, copies, coverage, FID and KID."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.bands import Bands
from common.config_options import ConfigOptions
from common.converters import batch_size, integer, number, workers
from common.errors import InputError, spelled
from common.files import atomic_path, check_writable, inside, only_writer, room_for, write_json
from common.options import option, recorded
from common.pairing import Pair
from common.sound_pairs import sound_pairs
from evaluation.agreement import agreement, class_coverage
from evaluation.compare import Records
from evaluation.copies import nearest, read_thumbnails, thumbnail
from evaluation.following import following, painted_after
from evaluation.samples_report import nearest_sheet, samples_figure

SHOWN = 8  # nearest pairs in the picture


@dataclass(frozen=True, kw_only=True)
class SamplesOptions(ConfigOptions):
    """The images, the segmentor that judges them, and where to write what it found."""

    config: str = option(positional=True, help="mmseg config of the segmentor trained on real images")
    checkpoint: str = option(positional=True, help="its weights")
    real_img_path: Path = option(help="real images that it was not trained on")
    real_label_path: Path = option(names=("--real-label-path", "--real-mask-path"), help="their masks")
    syn_img_path: Path = option(help="synthesized images")
    syn_mask_path: Path = option(help="masks that they were synthesized from")
    train_img_path: tuple[Path, ...] = option(
        help="images that the synthesis model has seen, in training or as references"
    )
    out_dir: Path = option(help="folder for evaluation.json and pictures")
    classes: str | None = option(None, help="class table, by name or path to a classes.json (default: the config's)")
    copy_distance: float = option(
        0.02,
        convert=number(0),
        help="an image nearer to a training image is flagged as copy (RMS of 32 x 32 thumbnails, 0..1)",
    )
    inception_weights: Path | None = option(
        None, help="torchvision's inception_v3 weights (.pth), for FID and KID to the training images"
    )
    rgb: tuple[int, ...] | None = option(
        None,
        convert=integer(1, 16),
        nargs=3,
        metavar="BAND",
        help="bands that pictures, FID and KID take for red, green and blue (default: what the config states)",
    )
    skip_invalid: bool = option(False, help="leave out files that are unpaired or damaged")
    several_maps: bool = option(False, help="GeoTIFFs need not share one coordinate reference system")
    batch_size: int | None = option(
        None, convert=batch_size, help="images a batch, of one size (default: as in the config's own test)"
    )
    num_workers: int = option(2, convert=workers, help="processes that read images")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")


def evaluate_samples(options: SamplesOptions, records: Records | None = None) -> dict[str, Any]:
    """Checks all that can be known, judges, and writes evaluation.json, evaluation.svg and nearest.jpg.

    Args:
        options: of the evaluation.
        records: reads what synthesis recorded of a folder's images, by name: their references among it.

    Returns:
        What evaluation.json holds.

    Raises:
        InputError: a file, the segmentor or the Inception weights cannot be used.
    """
    out = options.out_dir
    inputs = (options.real_img_path, options.real_label_path, options.syn_img_path, options.syn_mask_path)
    if folder := next((folder for folder in (*inputs, *options.train_img_path) if inside(out, folder)), None):
        raise InputError(f"‹out_dir› {out}: lies inside {folder}; name another folder")
    with room_for("‹out_dir›", out):
        check_writable(out, "‹out_dir›")
        with only_writer(out, "‹out_dir›"):
            return _evaluate(options, {} if records is None else records(options.syn_img_path))


def _evaluate(options: SamplesOptions, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    from segmentation.inference import open_segmentor  # mmseg takes seconds to load

    judge = open_segmentor(options.config, options.checkpoint, options, options.classes, options.device)
    bands = _bands(options, judge.bands)
    distances = _distances(options, bands)
    labels = judge.labels()
    how: dict[str, Any] = {
        "skip_invalid": options.skip_invalid,
        "look": judge.look,
        "several_maps": options.several_maps,
    }
    named = ("‹real_img_path›", "‹real_label_path›"), ("‹syn_img_path›", "‹syn_mask_path›")
    real = sound_pairs(options.real_img_path, options.real_label_path, named[0], labels, same_size=True, **how)
    synthesized = sound_pairs(options.syn_img_path, options.syn_mask_path, named[1], labels, **how)
    training, pool, damaged = read_thumbnails(options.train_img_path, "‹train_img_path›", options.skip_invalid, bands)
    left_out = [*real.left_out, *synthesized.left_out, *damaged]
    if distances:
        _check_distances(len(training), len(synthesized.pairs))
    before, after = (
        agreement(judge, pairs, title, options.batch_size, options.num_workers)
        for pairs, title in ((real.pairs, "real"), (synthesized.pairs, "synthesized"))
    )
    report: dict[str, Any] = {
        "options": recorded(options),
        "skipped": [spelled(line) for line in left_out],
        "real": before.report,
        "synthesized": after.report,
        "coverage": class_coverage(judge.class_names, before.mask_pixels, after.mask_pixels, after.found_pixels),
    }
    if (followed := following(painted_after(records, synthesized.pairs), bands)) is not None:
        report["reference"] = followed
    report |= _write_copies(options, report, synthesized.pairs, training, pool, bands)
    if distances:
        report |= distances(training, [pair.image for pair in synthesized.pairs])
        if bands is not None:
            report["bands of FID and KID"] = [bands.numbers[index] for index in bands.seen]
    write_json(report, options.out_dir / "evaluation.json")
    return report


def _bands(options: SamplesOptions, stated: Bands | None) -> Bands | None:
    """What the segmentor's config states of the images' bands, with the choice of three that the options name.

    Raises:
        InputError: a choice where there is none, or FID of more than three bands without one.
    """
    if stated is None:
        if options.rgb is not None:
            raise InputError("‹rgb›: the segmentor's config states nothing of bands; images have three. Leave it out")
        return None
    bands = stated.showing(options.rgb)
    if options.inception_weights is not None and bands.count > 3 and bands.rgb is None:
        raise InputError(f"‹inception_weights›: look at three of the {bands.count} bands; say which by ‹rgb›")
    return bands


def _distances(
    options: SamplesOptions, bands: Bands | None
) -> Callable[[Sequence[Path], Sequence[Path]], dict[str, float]] | None:
    """FID and KID of two lists of image files; None where no Inception weights are given."""
    if options.inception_weights is None:
        return None
    from common.devices import pick_device
    from evaluation import inception  # needs torchvision's models: seconds

    features = inception.inception_features(options.inception_weights)
    device = pick_device(options.device)
    return partial(inception.distances, features, device=device, batch_size=options.batch_size or 8, bands=bands)


def _check_distances(training: int, synthesized: int) -> None:
    """Refuses what FID and KID cannot be computed of: fewer than two images on a side."""
    for count, name in ((training, "‹train_img_path›"), (synthesized, "‹syn_img_path›")):
        if count < 2:
            raise InputError(
                f"‹inception_weights›: FID and KID need at least two images, {name} has {count}; name "
                "more, or leave the option out"
            )


def _write_copies(
    options: SamplesOptions,
    report: dict[str, Any],
    pairs: Sequence[Pair],
    training: Sequence[Path],
    pool: NDArray[Any],
    bands: Bands | None,
) -> dict[str, Any]:
    """Writes the pictures; returns which images are near to one of training, and how far each is from its nearest.

    Args:
        options: of the evaluation.
        report: what is known so far, for the figure.
        pairs: synthesized.
        training: image files that the synthesis model has seen.
        pool: their thumbnails, see ``read_thumbnails``.
        bands: what is stated of all images'; None for three of 8 bits.
    """
    images = np.stack([thumbnail(pair.image, bands) for pair in tqdm(pairs, "synthesized images", unit="image")])
    distance, index = nearest(images, pool)
    of_training = nearest(pool, pool, leave_out_self=True)[0] if len(pool) > 1 else np.zeros(1)
    rounded = {pair.name: round(float(value), 5) for pair, value in zip(pairs, distance, strict=True)}
    found = {
        "copies": {
            "limit": options.copy_distance,
            "images": [name for name, value in rounded.items() if value < options.copy_distance],
            "median_distance": float(np.median(distance)),
            "median_distance_of_training_images": float(np.median(of_training)),
        },
        "nearest": {
            pair.name: {"distance": rounded[pair.name], "nearest": str(training[index[i]])}
            for i, pair in enumerate(pairs)
        },
    }
    with atomic_path(options.out_dir / "evaluation.svg") as path:
        samples_figure(path, report | found, distance, of_training)
    closest = np.argsort(distance)[:SHOWN]
    with atomic_path(options.out_dir / "nearest.jpg") as path:
        closest_pairs = [(pairs[i].image, training[index[i]], float(distance[i])) for i in closest]
        nearest_sheet(path, closest_pairs, bands=bands)
    return found

"""What can be said of a segmentor's training, test and prediction, with units and defaults.

Not in ``segmentation``, which takes seconds to import: a command line is refused, or explained, at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config_options import ConfigOptions
from common.converters import integer, number, pixels
from common.errors import InputError
from common.log_choices import LOGGERS
from common.options import option
from common.processes import cores

MMConfig = Any  # mmengine's Config
METRICS = {"mIoU": "mIoU", "mAcc": "mAcc", "OA": "aAcc"}
"""Scores that weights can be chosen by, and mmseg's names of them."""
PRECISIONS = ("32", "bf16")
TRICKS = ("copy_paste", "color_transfer", "fda")  # in the order in which a pipeline has them

_of_config = "(default: the config's)"


@dataclass(frozen=True, kw_only=True)
class SegmentorOptions(ConfigOptions):
    """What trainings and tests have in common: a test may be given all that its training was."""

    config: str | Path | MMConfig = option(
        positional=True, help="mmseg config, e.g. configs/mmseg/pspnet_r50.py; it is Python, and runs"
    )
    work_dir: Path | None = option(None, help="folder for weights and logs (default: work_dirs/<config>)")
    load_from: str | Path | None = option(
        None, help="weights to test, or to start from: those that fit; others are listed"
    )
    pretrained: str | Path | None = option(
        None, help=f"backbone weights: a file, an address, or none {_of_config}; a test takes all from its checkpoint"
    )
    data_root: str | Path | None = option(None, help=f"data set's folder {_of_config}")
    classes: str | Path | None = option(None, help="class table: FUSU, GID, LoveDA, MBRSC or a classes.json")
    bands: Path | None = option(
        None,
        metavar="YAML",
        help="what `tisynth stats` measured of the images' bands; changes the model",
    )
    several_maps: bool = option(False, help="GeoTIFFs need not share one coordinate reference system")
    synthesized: str | Path | None = option(None, help="folder with resampled_img and resampled_label to add")
    repeat: int | None = option(None, convert=integer(1), help="how often real training pairs count")
    head_classes: int | None = option(
        None,
        convert=integer(2, 255),
        help="outputs of the heads (default: one a class; published FUSU: 18 for its 17 names)",
    )
    crop_size: int | None = option(None, convert=pixels, help=f"side of training crops in pixels {_of_config}")
    max_iters: int | None = option(None, convert=integer(1), help=f"training iterations {_of_config}")
    precision: str | None = option(
        None,
        choices=PRECISIONS,
        help=f"of training: 32 bit, or bf16 where that loses nothing and processors have it {_of_config}",
    )
    seed: int | None = option(
        None,
        convert=integer(0, 2**31 - 1),
        help="seed of weights, order and augmentation (default: the config's, else 0)",
    )
    logger: str | None = option(
        None,
        choices=LOGGERS,
        help="log of losses and scores beside mmengine's own; wandb's is offline (docs/python.md)",
    )
    tensorboard: bool = option(False, help="the same as --logger tensorboard")
    unchecked: bool = option(False, help="do not open every image and mask before the work")
    launcher: str | None = option(
        None,
        choices=("none", "pytorch", "slurm"),
        help="how jobs start (default: pytorch if torchrun started this command, else none)",
    )


_data = "what it trains on"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(SegmentorOptions):
    """A training; see ``segmentation.training.train``."""

    augment: tuple[str, ...] = option(
        (),
        choices=TRICKS,
        group=_data,
        help="steps added to the augmentation: Fourier style or colors of --references, rare classes pasted",
    )
    references: str | Path | None = option(
        None, group=_data, help="folder of unlabeled images that fda and color_transfer take the style of"
    )
    fda_beta: float | None = option(
        None,
        convert=number(0, 0.5),
        group=_data,
        help="share of frequencies that fda swaps, 0..0.5 of the shorter side (default: 0.01)",
    )
    augment_prob: float | None = option(
        None, convert=number(0, 1), group=_data, help="how often each of --augment is done, 0..1 (default: 0.5)"
    )
    rare_classes: tuple[str, ...] = option(
        (), group=_data, help="names of the classes that copy_paste pastes (default: those far below an even share)"
    )
    real_share: float | None = option(
        None,
        convert=number(0, 1),
        group=_data,
        help="part of the real images to train on, by their names; a smaller part lies in a larger one; with the "
        "synthesized images of their masks; 0: no real ones, all synthesized ones",
    )
    synthesized_per_real: float | None = option(
        None, convert=number(0), group=_data, help="synthesized images for each real one, as nested (default: all)"
    )
    pseudo_images: str | Path | None = option(None, group=_data, help="folder of images that join the real ones")
    pseudo_masks: str | Path | None = option(None, group=_data, help="their masks, as segmentor predict writes them")
    loss_weights: bool = option(
        False,
        group=_data,
        help="pixels of synthesized images count as the maps in <synthesized>/resampled_weight say",
    )

    resume: bool = option(
        False, help="go on from the last whole weights in --work-dir, or from --load-from; with none, start"
    )
    val_split: str | None = option(
        None,
        help="validate while training on img_<split>, label_<split>, or none (default: the config's; the best weights "
        "are kept beside the last)",
    )
    val_interval: int | None = option(
        None,
        convert=integer(1, 10**9),
        help="iterations between two validations (default: the config's, else as often as it saves)",
    )
    best: str | None = option(
        None,
        choices=tuple(METRICS),
        help="score that the best weights are chosen by (default: the config's, else mIoU)",
    )


@dataclass(frozen=True, kw_only=True)
class TestOptions(SegmentorOptions):
    """A test; see ``segmentation.testing.test``."""

    __test__ = False  # pytest would take the class for tests by its name

    split: str | None = option(None, help=f"test on img_<split>, label_<split> {_of_config}")
    out: Path | None = option(None, help="test: metrics as JSON (default: <work-dir>/metrics.json)")
    confusion: bool = option(False, help="test: which class is taken for which, as <out>_confusion.svg and .json")
    tta: bool = option(False, help="test: the mean over scaled, mirrored views of each image")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ConfigOptions):
    """Masks for images that have none; see ``segmentation.prediction.predict``."""

    config: str | Path | MMConfig = option(
        positional=True, help="mmseg config of the segmentor; it is Python, and runs"
    )
    load_from: str | Path = option(help="its weights")
    images: Path = option(help="folder of images, or one image")
    out: Path = option(help="folder for masks and what else is asked for")
    classes: str | Path | None = option(
        None, help="class table, by name or path to a classes.json (default: the config's)"
    )
    bands: Path | None = option(
        None, metavar="YAML", help="what is stated of the images' bands (default: what the config states)"
    )
    rgb: tuple[int, ...] | None = option(
        None, convert=integer(1, 16), nargs=3, metavar="BAND", help="bands that --overlay shows as red, green and blue"
    )
    overlay: bool = option(False, help="write pictures of the images under their classes")
    probabilities: bool = option(False, help="write each class's probabilities")
    sure: float | None = option(
        None,
        convert=number(0, 1),
        help="pixels whose class has a probability below this, 0..1, are to be ignored (255, or the id that the class "
        "table says): pseudo-labels",
    )
    tta: bool = option(
        False,
        help="the mean over scaled and mirrored views of each image (the config's tta_pipeline, else 6 scales, "
        "mirrored)",
    )
    slide: tuple[int, ...] | None = option(
        None,
        convert=integer(1, 10**5),
        metavar=("WINDOW", "STRIDE"),
        help="look at windows of so many pixels, every STRIDE pixels (default: whole images, as the config says; "
        "STRIDE: 2/3 of WINDOW)",
    )
    window: int | None = option(
        None,
        convert=pixels,
        metavar="PX",
        help="read images by windows of this side, and blend what is found in them: TIFFs of any size",
    )
    overlap: float = option(
        0.5, convert=number(0, 0.9), help="share of a window of --window that two neighbors have in common"
    )
    batch_size: int = option(1, convert=integer(1), help="images a batch, of one size; with --window: windows")
    num_workers: int = option(min(4, cores()), convert=integer(0), help="processes that read images")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        """Refuses windows that are none."""
        super().__post_init__()
        if self.slide is not None and not (len(self.slide) in (1, 2) and min(self.slide) > 0):
            raise InputError("‹slide›: write WINDOW, or WINDOW STRIDE")
        also = next((name for name in ("slide", "tta", "overlay", "probabilities") if getattr(self, name)), None)
        if self.window is not None and also is not None:
            raise InputError(f"‹window› and ‹{also}›: give one of them; by windows, masks alone are written")

"""What may be asked of a first stage's training, beside its configuration, and of its evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.converters import number, workers
from common.errors import InputError
from common.options import Options, option


@dataclass(frozen=True, kw_only=True)
class TrainVaeOptions(Options):
    """Where the images are, and where the run lies."""

    images: tuple[Path, ...] = option(metavar="DIR", help="folders of images to train on; all below are taken")
    val_images: tuple[Path, ...] = option(
        (), metavar="DIR", help="folders of images to validate on; by default a share of --images, by their names"
    )
    config: tuple[Path, ...] = option(
        (), metavar="YAML", help="the first stage, and what changes of configs/train/vae.yaml (see configs/first_stage)"
    )
    out: Path | None = option(None, metavar="RUN", help="folder of a new run")
    resume: Path | None = option(None, metavar="RUN", help="go on with a run: its folder, or one of its checkpoints")
    pretrain_path: Path | None = option(None, metavar="CKPT", help="weights to start from, of this first stage")
    measure: bool = option(False, help="write weights and scale of the run --resume as it stands, without training")
    dry_run: bool = option(False, help="check everything, and stop")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    settings: tuple[str, ...] = option((), positional=True, nargs="*", help="key=value: any value of the configuration")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.out is None) == (self.resume is None):
            raise InputError("‹out› and ‹resume›: give one of them, a new run's folder or the run to go on with")
        if self.pretrain_path is not None and self.resume is not None:
            raise InputError("‹pretrain_path› with ‹resume›: a run goes on with its own weights; leave one out")
        if self.measure and self.resume is None:
            raise InputError("‹measure›: name the run by ‹resume›")
        if not self.images:
            raise InputError("‹images›: name a folder")


@dataclass(frozen=True, kw_only=True)
class FirstStageScoresOptions(Options):
    """What to judge, on what."""

    config: Path = option(metavar="YAML", help="a file with a first_stage_config, or a model's")
    weights: Path | None = option(None, metavar="CKPT", help="its weights, alone or within a model's checkpoint")
    use_ema: bool = option(False, help="take the running averages of --weights, as of a training's last.ckpt")
    images: Path = option(metavar="DIR", help="images that the first stage was not trained on")
    range: tuple[float, ...] = option(
        (0.0, 255.0), convert=number(-1e9), nargs=2, help="what the files' values -1 and 1 stand for"
    )
    masks: Path | None = option(None, metavar="DIR", help="their masks, for --segmentor")
    segmentor: tuple[str, ...] | None = option(
        None, nargs=2, metavar="FILE", help="mmseg config, and weights, of a segmentor trained on real images"
    )
    classes: str | None = option(None, metavar="TABLE", help="class table, by name or path (default: the config's)")
    trust_config: bool = option(False, help="run a segmentor's config that imports code of its own")
    num_workers: int = option(2, convert=workers, help="processes that read images for the segmentor")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    reconstructions: Path | None = option(None, metavar="DIR", help="folder to write the reconstructions to, as PNG")
    out: Path = option(metavar="JSON", help="report to write")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.masks is None) != (self.segmentor is None):
            raise InputError("‹masks› and ‹segmentor›: one needs the other")
        if not self.range[0] < self.range[1]:
            raise InputError("‹range›: the smaller number first")

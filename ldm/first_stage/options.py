"""What may be asked of a first stage's training, beside its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

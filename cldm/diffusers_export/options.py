"""The options of the way to diffusers and of the way back. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cldm.options import WEIGHT_PRECISIONS, ModelOptions
from common.errors import InputError
from common.options import option


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Which model becomes a folder, and what its model card says.

    Raises:
        InputError: scores without their file.
    """

    config: Path = option(metavar="CONFIG", positional=True, help="the model's YAML, or a training run's config.yaml")
    weights: Path = option(metavar="WEIGHTS", positional=True, help="its weights: .ckpt or .safetensors")
    out: Path = option(metavar="OUT", positional=True, help="folder to write; it must not hold anything yet")
    classes: str | None = option(
        None, metavar="TABLE", help="class table, where the configuration names none: its names go into the model card"
    )
    use_ema: bool = option(False, help="take the running averages (model_ema.*)")
    precision: str = option("fp32", choices=WEIGHT_PRECISIONS, help="of the weights in the folder")
    title: str | None = option(None, metavar="TEXT", help="of the model card; the folder's name by default")
    license: str | None = option(
        None, metavar="ID", help="license of the weights, as Hugging Face names it (apache-2.0); not stated by default"
    )
    data: str | None = option(None, metavar="TEXT", help="what the model was trained on; not stated by default")
    scores: tuple[Path, ...] = option(
        (), metavar="JSON", help="reports of this project's commands (metrics.json, evaluation.json, comparison.json)"
    )


@dataclass(frozen=True, kw_only=True)
class ImportOptions(ModelOptions):
    """Which exported folder becomes a checkpoint and a YAML file again."""

    folder: Path = option(metavar="FOLDER", positional=True, help="what tisynth export-diffusers wrote")
    out: Path = option(
        metavar="OUT", positional=True, help="folder to write model.yaml and model.safetensors to; not there yet"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder.resolve() == self.out.resolve():
            raise InputError("‹out›: is the folder that is read; name another")

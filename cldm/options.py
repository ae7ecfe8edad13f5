"""What the options of all commands around the model share, those of the start checkpoint and of the benchmark.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.converters import batch_size, integer, number, pixels, random_seed
from common.errors import InputError
from common.options import Options, option
from ldm.models.choices import COMPILED

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODEL = CONFIGS / "model" / "tisynth_v15.yaml"  # the published model
WEIGHT_PRECISIONS = ("fp32", "fp16", "bf16")


def _check_size(size: tuple[int, ...]) -> None:
    if len(size) > 2:
        raise InputError("‹size›: write one number, or height and width")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Of all work that reads a model's YAML file."""

    trust: tuple[str, ...] = option(
        (),
        metavar="PACKAGE",
        help="packages (or hub names) that a configuration may name beside ours: their code is run",
    )


@dataclass(frozen=True, kw_only=True)
class LoraFileOptions(ModelOptions):
    """LoRA weights that are added to a model's own."""

    lora: tuple[Path, ...] = option(
        (),
        metavar="FILE",
        help="LoRA weights made for Stable Diffusion 1.x, by diffusers' or kohya's names, to be added to the U-Net's "
        "and the text encoder's",
    )
    lora_scale: tuple[float, ...] = option(
        (1.0,), convert=number(-10, 10), metavar="S", help="multiplies what they change: one number, or one a file"
    )
    allow_mismatch: tuple[str, ...] = option(
        (),
        metavar="MODULE",
        help="modules that the weights need not fit; lora: leave out what of --lora fits nowhere",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.lora_scale) not in (1, len(self.lora)):
            told = " ".join(f"{scale:g}" for scale in self.lora_scale)
            raise InputError(f"‹lora_scale› {told}: write one number, or one for each of {len(self.lora)} ‹lora›")

    @property
    def lora_files(self) -> list[tuple[Path, float]]:
        """Files and their scales."""
        scales = self.lora_scale * len(self.lora) if len(self.lora_scale) == 1 else self.lora_scale
        return list(zip(map(Path, self.lora), scales, strict=True))


@dataclass(frozen=True, kw_only=True)
class StartCheckpointOptions(LoraFileOptions):
    """What the start checkpoint is made of, and where it is written."""

    config: Path = option(metavar="YAML", help="the model's settings")
    source: tuple[Path, ...] = option(
        help="checkpoints to take weights from (.ckpt, .safetensors, diffusers folder): Stable Diffusion, and a "
        "ControlNet or TISynth for the branches; where two have the same weights, the later one's are taken",
    )
    out: Path = option(help="file to write, .safetensors or .ckpt (Lightning)")
    classes: Path | None = option(
        None, metavar="TABLE", help="class table of --config, by name or path to a classes.json (default: as it says)"
    )
    grow: Path | None = option(
        None,
        metavar="YAML",
        help="the source is a smaller model, trained with these settings: of the same width and depth, but for other "
        "classes, channels of the latent or bands. What it has is taken; what does not fit is listed",
    )
    seed: int = option(0, convert=random_seed, help="of the new weights that are random")
    precision: str = option("fp32", choices=WEIGHT_PRECISIONS, help="of the weights in the file")
    reset_branches: bool = option(False, help="copy the U-Net's encoder even where a source has branches")
    merge_lora: bool = option(False, help="merge LoRA layers into the weights they adapt: an ordinary checkpoint")
    use_ema: bool = option(False, help="take EMA weights (model_ema.*) of the sources that have them")
    allow_mismatch: tuple[str, ...] = option(
        (),
        metavar="MODULE",
        help="modules that the sources may lack, have more of or have in another shape; these stay random; all: any; "
        "nan: take weights that are NaN or infinite; lora: leave out what of --lora fits nowhere",
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ModelOptions):
    """Which model is measured, on images of what size, how often."""

    config: Path = option(metavar="YAML", help="model settings")
    size: tuple[int, ...] = option((512,), convert=pixels, metavar="PX", help="side, or height and width")
    batch_size: int = option(1, convert=batch_size, help="images at once")
    precision: str = option("32", choices=("32", "bf16", "16"), help="of weights and activations")
    steps: int = option(50, convert=integer(1, 500), help="denoising steps of an image")
    repeats: int = option(5, convert=integer(1), help="timed runs of each work; the median counts")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    no_peer: bool = option(False, help="leave the peer out")
    no_training: bool = option(False, help="leave training out")
    presets: bool = option(False, help="time images by each preset of a synthesis, too")
    compile: tuple[str, ...] | None = option(
        None,
        choices=COMPILED[1:],
        nargs="*",
        help="compile the networks at last: how long that takes, and a step afterwards; blocks, whole, graphs (all "
        "that the device can do)",
    )
    flops: bool = option(
        False, help="count an image's operations by each preset and saving (docs/speed_and_use.md); time nothing"
    )
    parity: bool = option(
        False, help="compare predictions and pictures by lower precisions with those by 32 bit; time nothing"
    )
    out: Path | None = option(None, metavar="JSON", help="file for the numbers")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size(self.size)


@dataclass(frozen=True, kw_only=True)
class CountMemoryOptions(ModelOptions):
    """Which model's memory is counted, for images of what size and how many."""

    config: Path = option(metavar="YAML", help="model settings")
    size: tuple[int, ...] = option((512,), convert=pixels, metavar="PX", help="side, or height and width")
    batch_size: tuple[int, ...] = option((1, 4), convert=batch_size, help="images at once")
    lora: int = option(8, convert=integer(1, 16_384), metavar="RANK", help="of the LoRA layers")
    measure: bool = option(False, help="run each of these works on a GPU, too, and write what it took beside the count")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size(self.size)

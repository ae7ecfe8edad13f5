"""The options of a scene. Imports no torch: a command line is refused within a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cldm.data.choices import REFERENCE_FITS
from cldm.options import MODEL, ModelOptions
from cldm.synthesis.options import REFERENCE_LATENTS, SamplingOptions
from common.converters import batch_size, integer, number, pixels
from common.errors import InputError
from common.options import option
from common.rasters import is_geotiff
from ldm.models.choices import SPACINGS

FORMATS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class SceneOptions(ModelOptions):
    """Which mask is painted, by which model, after which reference, and where the image is written."""

    mask: Path = option(positional=True, metavar="MASK", help="class ids of the scene, of any size")
    reference: Path | None = option(
        None, metavar="REF", help="image whose style the scene gets; each window reads all of it"
    )
    prompt: str = option("", help="text")
    out: Path | None = option(
        None,
        metavar="FILE",
        help=f"image to write ({', '.join(FORMATS)}); by default ./<mask name>_seed_<seed>.png, or .tif where the mask "
        "is a GeoTIFF: in its place on the map",
    )
    config: Path = option(MODEL, metavar="YAML", help="model settings, or a training run's config.yaml")
    ckpt: Path = option(help="weights: .ckpt, .safetensors or a diffusers folder")
    use_ema: bool = option(False, help="use the checkpoint's running averages (model_ema.*)")
    allow_mismatch: tuple[str, ...] = option((), metavar="MODULE", help="modules that --ckpt need not fit")
    classes: str | None = option(
        None, metavar="TABLE", help="class table of the mask: FUSU, GID, LoveDA, MBRSC or a classes.json"
    )
    window: tuple[int, ...] | None = option(
        None,
        convert=pixels,
        metavar="PX",
        help="side of a window, or height and width; by default what the model was trained at, as far as its "
        "configuration says, else 64 latent pixels",
    )
    overlap: float = option(0.5, convert=number(0, 0.9), help="share of a window that two neighbors have in common")
    seed: int = option(42, convert=integer(0, 2**62), help="of the noise")
    steps: int = option(50, names=("--ddim-steps", "--steps"), convert=integer(1, 500), help="denoising steps, by DDIM")
    spacing: str = option("auto", choices=SPACINGS, help="of the time steps, as in a synthesis")
    scale: float = option(9.0, convert=number(0, 1000), help="guidance scale; 1 is no guidance")
    mask_scale: float = option(1.0, convert=number(0, 1000), help="guidance scale of the mask, as in a synthesis")
    reference_scale: float = option(1.0, convert=number(0, 1000), help="guidance scale of the reference, alike")
    guidance_rescale: float = option(0.0, convert=number(0, 1), help="against colors too strong, as in a synthesis")
    reference_fit: str = option(
        "crop",
        choices=REFERENCE_FITS,
        help="a reference of another shape than a window: keep its middle, or stretch it",
    )
    reference_latent: str = option(
        "mode", choices=REFERENCE_LATENTS, help="what the model reads of the reference, as in a synthesis"
    )
    split_guidance: bool = option(False, help="the two texts one after the other: less memory, slower")
    long_prompts: bool = option(False, help="read a prompt beyond 75 tokens in windows of 75; not cut")
    batch_size: int = option(8, convert=batch_size, help="windows at once")
    precision: str = option("32", choices=("32", "bf16", "16"), help="of the weights")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    quality: int = option(95, convert=integer(1, 100), help="of a JPEG file, 1 to 100")
    remake: bool = option(False, help="make the image again if it is there and was made otherwise")
    dry_run: bool = option(False, help="check everything, print the plan, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and not (len(self.window) in (1, 2) and min(self.window) > 0):
            raise InputError("‹window›: write one number, or height and width")
        if self.file.suffix.lower() not in FORMATS:
            raise InputError(f"‹out› {self.file}: is written as one of {', '.join(FORMATS)}; name it so")

    @property
    def file(self) -> Path:
        """Where the image is written."""
        return self.out or Path(f"{self.mask.stem}_seed_{self.seed}.{'tif' if is_geotiff(self.mask) else 'png'}")

    @property
    def sampling(self) -> SamplingOptions:
        """How an image is made, as a synthesis is told."""
        return SamplingOptions(
            seed=self.seed,
            steps=self.steps,
            spacing=self.spacing,
            scale=self.scale,
            mask_scale=self.mask_scale,
            reference_scale=self.reference_scale,
            guidance_rescale=self.guidance_rescale,
            reference_latent=self.reference_latent,
            split_guidance=self.split_guidance,
            batch_size=self.batch_size,
        )

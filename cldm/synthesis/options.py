"""The options of a synthesis. Imports no torch: a command line is refused within a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cldm.data.choices import REFERENCE_FITS
from cldm.options import MODEL, LoraFileOptions
from cldm.synthesis.saving_options import SavingOptions
from common.converters import batch_size, integer, number, pixels, workers
from common.errors import InputError
from common.options import option
from ldm.models.choices import COMPILED, CONSISTENCY, QUANTIZED, SAMPLERS, SPACINGS, TAKE_ETA, steps_over_image

REFERENCE_LATENTS = ("mode", "sample")
PRECISIONS = ("32", "bf16", "16", "bf16-mixed", "16-mixed")
PUBLISHED = "published options, checked or without effect"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(SavingOptions):
    """How images are made of masks, references and texts; the defaults are the published ones, but for the latent."""

    seed: int = option(42, convert=integer(0, 2**62), help="first seed")
    num_samples: int = option(
        1, convert=integer(1, 100_000), help="images a mask: seeds seed, seed + 1, ...; unless its line names seeds"
    )
    scale: float = option(9.0, convert=number(0, 1000), help="guidance scale; 1 is no guidance")
    mask_scale: float = option(
        1.0, convert=number(0, 1000), help="guidance scale of the mask, for models trained with drop_mask_p; 1: none"
    )
    reference_scale: float = option(
        1.0, convert=number(0, 1000), help="the same of the reference, for drop_reference_p; each takes a prediction"
    )
    guidance_rescale: float = option(
        0.0,
        convert=number(0, 1),
        help="share by which guidance keeps the prediction's spread, against colors too strong",
    )
    steps: int = option(50, names=("--ddim-steps", "--steps"), convert=integer(1, 500), help="denoising steps")
    sampler: str = option(
        "ddim", choices=SAMPLERS, help="solver; lcm and tcd: for LoRA weights (--lora) that were made for a few steps"
    )
    spacing: str = option(
        "auto",
        choices=SPACINGS,
        help="time steps: leading (published), or trailing, from the noise's end, for few steps; auto: leading, but "
        "trailing for a single step, for a model whose noise process ends in noise alone, and for lcm and tcd",
    )
    eta: float = option(
        0.0,
        names=("--ddim-eta",),
        convert=number(0, 1),
        help="share of fresh noise a step, for ddim and tcd; 0: deterministic",
    )
    reference_latent: str = option(
        "mode",
        choices=REFERENCE_LATENTS,
        help="what the model reads of a reference: the mode of its latent's distribution, or a sample (published; "
        "drawn by image's name and seed)",
    )
    start_strength: float = option(
        1.0,
        convert=number(0, 1),
        help="paint over each item's own image (target), noised by this share of the steps, above 0, of which no "
        "more are taken; 1: from noise alone",
    )
    split_guidance: bool = option(False, help="the two texts one after the other: less memory, slower")
    rectify_steps: int = option(
        4, convert=integer(1, 500), help="with --rectify: in this many of the first steps, each by less than the last"
    )
    rectify_scale: float = option(
        0.5, convert=number(0, 1000), help="with --rectify: size of the first, in standard deviations of the latent"
    )
    candidates: int = option(1, convert=integer(1, 1000), help="images made of each seed; the judge's best is kept")
    retry: int = option(
        0, convert=integer(0, 1000), help="make up to this many more while the best is under --retry-below"
    )
    retry_below: float = option(
        0.5, convert=number(0, 1), help="mean IoU, 0..1, of the classes of an image's mask, as the judge finds them"
    )
    batch_size: int = option(8, convert=batch_size, help="images at once on a device")
    num_workers: int = option(2, convert=workers, help="processes that read items, a device")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta and self.sampler not in TAKE_ETA:
            raise InputError(f"‹eta› {self.eta}: only ‹sampler› {' and '.join(TAKE_ETA)} take a share of fresh noise")
        if self.sampler in CONSISTENCY and self.spacing == "leading":
            raise InputError(f"‹spacing› leading: the time steps of ‹sampler› {self.sampler} begin at the noise's end")
        taken, last = self.steps_taken, self.key_steps[-1]
        if self.reuse_encoder != "none" and last.isdecimal() and int(last) >= taken:
            raise InputError(f"‹key_steps› {last}: the last of {self.counted} is {taken - 1}")

    @property
    def guided(self) -> bool:
        """Whether anything guides: text, mask or reference."""
        return not self.scale == self.mask_scale == self.reference_scale == 1

    @property
    def paints_over(self) -> bool:
        """Whether images are made of items' own images (SDEdit), not of noise alone."""
        return self.start_strength < 1

    @property
    def steps_taken(self) -> int:
        """Of ``steps``, those that are taken."""
        return steps_over_image(self.steps, self.start_strength) if self.paints_over else self.steps

    @property
    def counted(self) -> str:
        """The steps that are taken, in words."""
        of = f" that ‹start_strength› {self.start_strength:g} takes of {self.steps}" if self.paints_over else ""
        return f"{self.steps_taken} ‹steps›{of}"

    @property
    def chooses(self) -> bool:
        """Whether an image may be one of several."""
        return self.candidates > 1 or self.retry > 0

    @property
    def seeds(self) -> range:
        """Of each item: an image an item and seed."""
        return range(self.seed, self.seed + self.num_samples)


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions(SamplingOptions, LoraFileOptions):
    """Which model makes images of which list, and how they are written into a folder."""

    config: Path = option(MODEL, metavar="YAML", help="model settings, or a training run's config.yaml")
    ckpt: Path = option(help="weights: .ckpt, .safetensors or a diffusers folder")
    use_ema: bool = option(False, help="use the checkpoint's running averages (model_ema.*)")
    allow_mismatch: tuple[str, ...] = option(
        (),
        metavar="MODULE",
        help="modules that --ckpt need not fit; lora: leave out what of --lora fits nowhere",
    )
    data_root: str | Path = option(metavar="DIR", help="folder that the list's paths are relative to")
    items: str | Path = option(names=("--train-txt-file", "--txt-file"), metavar="FILE", help="items with ref_image")
    outdir: Path = option(metavar="DIR", help="folder of the images; made if need be")
    size: tuple[int, ...] | None = option(
        None, convert=pixels, metavar="PX", help="side, or height and width; each mask's by default"
    )
    reference_fit: str = option(
        "crop",
        choices=REFERENCE_FITS,
        help="a reference of another shape than its mask: keep its middle, or stretch it (published)",
    )
    long_prompts: bool = option(False, help="read prompts beyond 75 tokens in windows of 75; not cut")
    classes: str | None = option(
        None, metavar="TABLE", help="class table to check masks by: FUSU, GID, LoveDA, MBRSC or a classes.json"
    )
    rectify: tuple[str, ...] | None = option(
        None,
        nargs=2,
        metavar=("CONFIG", "WEIGHTS"),
        help="an mmseg segmentor that guides the first steps towards images in which it finds their masks",
    )
    judge: tuple[str, ...] | None = option(
        None,
        nargs=2,
        metavar=("CONFIG", "WEIGHTS"),
        help="an mmseg segmentor that chooses, for --candidates and --retry (default: that of --rectify)",
    )
    trust_config: bool = option(False, help="run a segmentor's config that lies in a folder of results")
    precision: str = option("32", choices=PRECISIONS, help="of the weights, or mixed: weights in 32 bit")
    quantize: str = option(
        "none", choices=QUANTIZED, help="the attention's weights in 8 bit, for less memory (extra quantize: torchao)"
    )
    threads: int | None = option(
        None,
        convert=integer(1, 1024),
        help="CPU threads of a process; by default its physical cores, or OMP_NUM_THREADS",
    )
    gpus: str = option("auto", help="auto, cpu, or indices: 0 or 0,1,2,3")
    num_nodes: int = option(1, convert=integer(1), help="machines; start the same command on each by SLURM or torchrun")
    bands: Path | None = option(
        None,
        metavar="YAML",
        help="what is stated of the images' bands (`tisynth stats`), in place of the model's configuration",
    )
    rgb: tuple[int, ...] | None = option(
        None, convert=integer(1, 16), nargs=3, metavar="BAND", help="bands that pictures show as red, green and blue"
    )
    several_maps: bool = option(False, help="masks need not share one coordinate reference system")
    image_format: str = option(
        "auto",
        names=("--format",),
        choices=("auto", "jpg", "png", "tif"),
        help="of the images; auto: GeoTIFF where the mask is one, or of more than three bands or 8 bits; else jpg",
    )
    quality: int = option(95, convert=integer(1, 100), help="of JPEG files, 1 to 100")
    compile: str = option(
        "no",
        choices=COMPILED,
        nargs="?",
        const="blocks",
        help="torch.compile the networks' repeated blocks (as without a word), or the networks as a whole: slow start, "
        "quicker steps; graphs: blocks, replayed as CUDA graphs",
    )
    only: tuple[str, ...] = option((), metavar="NAME", help="make just these images (<mask name>_seed_<seed>), again")
    remake: bool = option(False, help="make images again that were made otherwise than this command would")
    skip_invalid: bool = option(False, help="leave faulty items out instead of stopping")
    follow_links: bool = option(False, help="take files outside --data-root that links below it lead to")
    dry_run: bool = option(False, help="check everything, print the plan, and stop")
    mask_height: int | None = option(
        None,
        names=("--H",),
        convert=pixels,
        metavar="PX",
        group=PUBLISHED,
        help="of all masks; nothing is resized by it",
    )
    mask_width: int | None = option(
        None,
        names=("--W",),
        convert=pixels,
        metavar="PX",
        group=PUBLISHED,
        help="of all masks; nothing is resized by it",
    )
    latent_channels: int | None = option(
        None,
        names=("--C",),
        convert=integer(1),
        metavar="N",
        group=PUBLISHED,
        help="of the latent, as the model has them",
    )
    latent_factor: int | None = option(
        None,
        names=("--f",),
        convert=integer(1),
        metavar="PX",
        group=PUBLISHED,
        help="image pixels a latent pixel, as the model has them",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and len(self.size) > 2:
            raise InputError("‹size›: write one number, or height and width")
        if self.rectify and self.rectify_steps > self.steps_taken:
            raise InputError(f"‹rectify_steps› {self.rectify_steps}: there are {self.counted}; take fewer")
        if self.chooses and not (self.judge or self.rectify):
            raise InputError("‹candidates›, ‹retry›: need a segmentor that chooses; name one by ‹judge›")
        if self.compile == "graphs" and self.reuse_encoder == "all":
            raise InputError("‹compile› graphs: overwrites what ‹reuse_encoder› all keeps; take blocks")
        if self.quantize != "none" and (self.precision.endswith("mixed") or self.rectify):
            raise InputError(f"‹quantize› {self.quantize}: goes with ‹precision› 32, bf16 or 16, and without ‹rectify›")
        if self.judge and not self.chooses:
            raise InputError("‹judge›: has nothing to choose from; set ‹candidates› or ‹retry›")

"""What can be said of a filtering, with units and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config_options import ConfigOptions
from common.converters import integer, number
from common.errors import InputError
from common.options import option
from common.processes import cores

TREATMENTS = ("ignore", "relabel", "weight")
_OF_SEGMENTOR = ("config", "checkpoint", "real_img_path", "real_label_path", "syn_img_path")


@dataclass(frozen=True, kw_only=True)
class FilterOptions(ConfigOptions):
    """Where losses come from, a segmentor or ``from_loss``; how large they may be; and where masks go."""

    config: str | None = option(
        None, positional=True, nargs="?", metavar="CONFIG", help="mmseg config of the segmentor trained on real images"
    )
    checkpoint: str | None = option(None, positional=True, nargs="?", metavar="CHECKPOINT", help="its weights")
    real_img_path: Path | None = option(None, help="real images")
    real_label_path: Path | None = option(
        None, names=("--real-label-path", "--real-mask-path"), help="their masks, of the same names"
    )
    syn_img_path: Path | None = option(None, help="synthesized images")
    syn_mask_path: Path = option(help="masks that they were synthesized from")
    filtered_mask_path: Path = option(help="folder for filtered masks and report")
    classes: str | None = option(None, help="class table, by name or path to a classes.json (default: the config's)")
    tolerance_margin: float = option(1.25, convert=number(0), help="limit = margin x mean loss of the class")
    unseen_class: str = option(
        "ignore",
        choices=("ignore", "keep"),
        help="pixels of a class that no real image shows: set to 255, or kept",
    )
    treatment: str = option(
        "ignore",
        choices=TREATMENTS,
        help="pixels above the limit: set to 255, as published; relabeled where the segmentor is sure of a class, else "
        "255; or all pixels weighted, exp(-loss / limit), by a map beside the mask, which stays as it is",
    )
    sure: float = option(0.9, convert=number(0, 1), help="with --treatment relabel: probability that a new label needs")
    ensemble: tuple[str, ...] = option(
        (),
        metavar="WEIGHTS",
        help="with --treatment relabel: weights of more trainings of the config (other seeds); probabilities are their "
        "mean, losses CHECKPOINT's",
    )
    weight_map_path: Path | None = option(
        None, help="with --treatment weight: folder for the maps, PNGs of the masks' names, 255 for weight 1"
    )
    save_loss: Path | None = option(None, help="folder for each pixel's loss (float16), for --from-loss")
    from_loss: Path | None = option(None, help="folder that --save-loss wrote; replaces segmentor and images")
    several_maps: bool = option(False, help="GeoTIFFs need not share one coordinate reference system")
    skip_invalid: bool = option(False, help="leave out files that are unpaired or damaged")
    batch_size: int = option(
        8,
        convert=integer(1, 4096),
        help="images a batch, of one size; another one changes losses by their last bits",
    )
    num_workers: int = option(
        min(4, cores()),
        convert=integer(0, 256),
        help="processes that read images, threads that write masks",
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_loss:
            replaced = (*_OF_SEGMENTOR, "save_loss", "cfg_options")
            if surplus := [f"‹{name}›" for name in replaced if getattr(self, name)]:
                raise InputError(f"‹from_loss› replaces {', '.join(surplus)}; leave out one or the other")
        elif missing := [f"‹{name}›" for name in _OF_SEGMENTOR if not getattr(self, name)]:
            raise InputError(f"missing: {', '.join(missing)} (see --help)")
        if self.treatment != "relabel" and (self.ensemble or self.sure != 0.9):
            raise InputError(f"‹{'ensemble' if self.ensemble else 'sure'}›: belongs to ‹treatment› relabel")
        if self.treatment == "relabel" and self.from_loss:
            raise InputError("‹treatment› relabel: needs a segmentor, saved losses do not say what else a pixel is")
        if (self.treatment == "weight") != (self.weight_map_path is not None):
            raise InputError("‹treatment› weight and ‹weight_map_path› DIR: give both, or none")
        if not self.tolerance_margin > 0:
            raise InputError(f"‹tolerance_margin› {self.tolerance_margin}: must be above 0")

    def outputs(self) -> dict[str, Path]:
        """The folders that are written to, by the option that names them."""
        folders = {
            "‹filtered_mask_path›": self.filtered_mask_path,
            "‹weight_map_path›": self.weight_map_path,
            "‹save_loss›": self.save_loss,
        }
        return {name: folder for name, folder in folders.items() if folder}

    def files_of(self, name: str, suffix: str = ".png") -> list[Path]:
        """The files that are written for an image: its mask, its weight map, and its losses, if there are any."""
        weights = [self.weight_map_path / f"{name}.png"] if self.weight_map_path else []
        losses = [self.save_loss / f"{name}.npy"] if self.save_loss else []
        return [self.filtered_mask_path / f"{name}{suffix}", *weights, *losses]

"""Options of ``tisynth import``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import limits
from common.converters import integer, number, pixels, random_seed, workers
from common.errors import InputError
from common.options import Options, option
from common.schema import one_line

FORMATS = (
    "coco",
    "labelme",
    "roboflow-masks",
    "cvat",
    "voc",
    "mmseg",
    "loveda",
    "gid",
    "fusu",
    "deepglobe",
    "potsdam",
    "vaihingen",
    "openearthmap",
    "vector",
    "folders",
)
_FIELDS = ("classes", "name", "split")


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """Options of ``import_data``."""

    source: Path = option(positional=True, metavar="SOURCE", help="folder that holds the data, or a COCO JSON file")
    out: Path = option(help="folder to make; it must not be there yet")
    format: str | None = option(None, names=("--from",), choices=FORMATS, help="how SOURCE is kept; found by itself")
    images: Path | None = option(None, group="what is read", help="folder of the images, where it is another one")
    masks: Path | None = option(
        None, group="what is read", help="folder of the masks, or file of polygons, where it is another one"
    )
    classes: str | None = option(
        None,
        metavar="TABLE",
        group="what is read",
        help="class table: a name (see docs/your_data.md), classes.json, labelmap.txt of CVAT, or CSV of name,r,g,b",
    )
    class_names: tuple[str, ...] = option((), metavar="NAME", group="what is read", help="class names 0..N-1, in order")
    map: tuple[str, ...] = option(
        (),
        metavar="ID:CLASS",
        group="what is read",
        help="ids in mask files and the class ids that they are, 1:0,2:1; to ignore: 0:255",
    )
    color_tolerance: float = option(
        0.0,
        convert=number(0, 442),
        group="what is read",
        help="distance in RGB up to which a color counts as its class's; JPEGs have their own way",
    )
    yes: bool = option(False, group="what is read", help="take classes learned from the masks without asking")
    class_field: str | None = option(None, metavar="FIELD", group="polygons", help="field of map files: the class")
    background: str | None = option(
        None, metavar="NAME", group="polygons", help="class of pixels that no polygon covers (default: to ignore)"
    )
    on_top: str = option(
        "last", choices=("last", "first", "smallest"), group="polygons", help="which of several polygons a pixel is of"
    )
    crowd: str = option(
        "class", choices=("class", "ignore"), group="polygons", help="COCO's crowds are of their class, or to ignore"
    )
    tile: int | None = option(None, convert=pixels, group="tiles and splits", help="cut images to squares of this side")
    overlap: int = option(0, convert=integer(0, limits.PIXELS), group="tiles and splits", help="pixels two tiles share")
    max_unlabeled: float = option(
        0.9,
        convert=number(0, 1),
        group="tiles and splits",
        help="share of pixels to ignore above which a tile is left out",
    )
    split: tuple[float, ...] = option(
        (),
        metavar="SHARE",
        group="tiles and splits",
        convert=number(0, 1),
        help="shares of train (val) test, by scenes, such as 0.8 0.1 0.1 (default: as published, or 0.8 0.2)",
    )
    scene: str | None = option(
        None,
        metavar="REGEX",
        group="tiles and splits",
        help="images of one scene have this part of their name in common",
    )
    seed: int = option(
        0, convert=random_seed, group="tiles and splits", help="of the split, and the choice of references"
    )
    references: Path | None = option(
        None,
        group="prompts and references",
        help="folder of unlabeled images from elsewhere: ref_img, and a list to paint",
    )
    unlabeled: str = option(
        "refuse",
        choices=("refuse", "skip", "reference"),
        group="prompts and references",
        help="images without a mask are refused, left out, or taken as references",
    )
    prompt_template: str = option(
        "a satellite image of {classes}",
        group="prompts and references",
        help="of {classes} seen in the mask, {name} of the file and {split}",
    )
    num_workers: int | None = option(None, convert=workers, help="threads that read and write (default: one a core)")
    dry_run: bool = option(False, help="say what was found, and write nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile is not None and self.overlap >= self.tile:
            raise InputError(f"‹overlap› {self.overlap}: must be less than ‹tile› {self.tile}")
        if self.tile is None and self.overlap:
            raise InputError("‹overlap›: goes with ‹tile›")
        if self.split and (len(self.split) not in (2, 3) or not 0.999 < sum(self.split) < 1.001 or not self.split[0]):
            shown = " ".join(f"{share:g}" for share in self.split)
            raise InputError(f"‹split› {shown}: write two or three shares that sum to 1: train test, or train val test")
        try:
            self.prompt_template.format(**dict.fromkeys(_FIELDS, "x"))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            told = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise InputError(
                f"‹prompt_template› {one_line(self.prompt_template, 80)}: {one_line(error)}; it may hold {told}"
            ) from error

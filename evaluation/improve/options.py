"""What the closed loop may be told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.command import Parser
from common.converters import integer, number
from common.errors import InputError
from common.options import Options, option
from common.schema import one_line
from common.tile_names import SCENE


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The parts that a loop is made of, where its options do not say.

    Attributes:
        rectify: as the option.
        layouts: new layouts a round, as many for each mask that trains.
        images: painted in a round, as many for each mask that trains; None for two of each mask and new layout.
        words: of other commands, by the option that has the user's, which come after them.
    """

    rectify: bool = False
    layouts: int = 0
    images: int | None = None
    words: Mapping[str, str] = field(default_factory=dict)


# docs/proof.md has what each part, and all of them, bring.
RECIPES = {
    "plain": Recipe(),
    "together": Recipe(
        rectify=True,
        layouts=1,
        images=1,
        words={
            "painting": "--candidates 2",
            "allotting": "--references-per-mask 1",
            "filtering": "--treatment relabel --sure 0.6",
            "resampling": "--min-valid 0",
        },
    ),
}
_OF_THE_LOOP = (  # files of the loop, and what one stage leaves for the next
    *("--config", "--ckpt"),
    *("--data-root", "--txt-file", "--train-txt-file", "--masks", "--out", "--outdir", "--out-dir"),
    *("--real-img-path", "--real-label-path", "--real-mask-path", "--syn-img-path", "--syn-mask-path"),
    *("--filtered-mask-path", "--weight-map-path", "--from-loss"),
)
WORDS = ("painting", "training", "allotting", "filtering", "resampling")


@dataclass(frozen=True, kw_only=True)
class ImproveOptions(Options):
    """The data, the model that paints, the segmentor, and how long to go on."""

    data: Path = option(
        positional=True,
        metavar="DATA",
        help="img_train, label_train, train_set_items.json, ref_img, classes.json; tests: img_<split>, label_<split>",
    )
    out: Path = option(positional=True, metavar="OUT", help="folder of all rounds; the same command goes on with it")
    config: Path = option(metavar="YAML", help="the model that paints, or a training run's config.yaml")
    ckpt: Path = option(metavar="CKPT", help="its weights")
    use_ema: bool = option(False, help="its running averages")
    segmentor: str = option("configs/mmseg/tiny.py", metavar="CONFIG", help="mmseg config of the segmentor")
    classes: Path | None = option(None, metavar="FILE", help="class table (default: DATA/classes.json)")
    bands: Path | None = option(
        None,
        metavar="YAML",
        help="what is stated of the images' bands (`tisynth stats`), for every stage that reads them",
    )
    scene: str = option(
        SCENE,
        metavar="REGEX",
        help="a file's scene, group 1 of a whole name: files of one scene are trained on or validated on together",
    )
    validation: float = option(
        0.2, convert=number(0.01, 0.9), help="share of the scenes held out: they choose everything, the tests nothing"
    )
    rounds: int = option(4, convert=integer(1, 100), help="rounds at most")
    patience: int = option(2, convert=integer(1, 100), help="end after so many rounds that bring nothing")
    recipe: str = option(
        "plain",
        choices=tuple(RECIPES),
        help="what a round is made of. together: as many new layouts as training masks, images of the hardest of both, "
        "as many as training masks, guided (--rectify), the better of two each, relabeled where the segmentor is sure. "
        "plain: none of these but what is named",
    )
    images: int | None = option(
        None, convert=integer(1), help="images painted in a round (default: of the recipe; plain: two of each mask)"
    )
    layouts: int | None = option(
        None, convert=integer(0), help="new layouts a round, beside the real masks (default: of the recipe; plain: 0)"
    )
    rectify: bool = option(False, help="the segmentor guides the first steps of painting, see --rectify of inference")
    no_rectify: bool = option(False, help="it does not, whatever the recipe")
    worst: int | None = option(
        None, convert=integer(1), help="classes that re-sampling counts as poor (default: the worse half)"
    )
    repeat: int = option(1, convert=integer(1), help="how often a real pair counts beside a painted one")
    seed: int = option(0, convert=integer(0, 2**31 - 1), help="of the trainings in the rounds")
    seeds: int = option(5, convert=integer(1, 1000), help="of the comparison on the test sets at the end")
    splits: tuple[str, ...] = option(("test",), help="test sets of the end: img_<split>, label_<split>")
    jobs: int = option(1, convert=integer(1, 256), help="trainings at once in the comparison at the end")
    gpus: str = option("auto", help="of painting: auto, cpu, or indices: 0 or 0,1,2,3")
    processes: int = option(
        1,
        convert=integer(1, 1024),
        help="of a segmentor's training in the rounds, by torchrun: one a GPU, each with the config's batch; the "
        "comparison trains in one",
    )
    painting: str = option(
        "", metavar="OPTIONS", help="more for inference.sh, in one word: '--ddim-steps 20 --scale 2'"
    )
    training: str = option("", metavar="OPTIONS", help="more for the segmentors' trainings: '--max-iters 2000'")
    allotting: str = option("", metavar="OPTIONS", help="more for tisynth allot: '--references-per-mask 4'")
    filtering: str = option("", metavar="OPTIONS", help="more for filter.sh: '--tolerance-margin 1.5'")
    resampling: str = option("", metavar="OPTIONS", help="more for resample.sh: '--min-valid 0.5'")
    dry_run: bool = option(False, help="check data and options, print what a round runs, write nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            groups = re.compile(self.scene).groups
        except re.error as error:
            raise InputError(f"‹scene› {self.scene}: no regular expression ({error})") from error
        if not groups:
            raise InputError(f"‹scene› {self.scene}: put parentheses around what names the scene")
        if not self.splits:
            raise InputError("‹splits›: name a test set")
        for name in WORDS:
            self.more(name)
        if self.rectify and self.no_rectify:
            raise InputError("‹rectify› and ‹no_rectify›: say one of them")
        for name in ("painting", "allotting", "filtering", "resampling"):
            for given in _OF_THE_LOOP:
                if self.said(name, given) is not None:
                    raise InputError(f"‹{name}› {given}: is given by the loop itself; leave it out")
        if self.has_layouts and self.said("painting", "--start-strength") not in (None, "1", "1.0"):
            raise InputError(
                "‹layouts›: have no image for --start-strength in ‹painting›; leave it out, or say ‹layouts› 0"
            )

    @property
    def class_table(self) -> Path:
        """The class table's file."""
        return self.classes or self.data / "classes.json"

    @property
    def guided(self) -> bool:
        """Whether the segmentor guides the painting."""
        return not self.no_rectify and (self.rectify or RECIPES[self.recipe].rectify)

    @property
    def needs_judge(self) -> bool:
        """Whether the segmentor chooses among images and is not named yet, as the one that guides is."""
        words = self.more("painting")
        chooses = _said(words, "--candidates") not in (None, "1") or _said(words, "--retry") not in (None, "0")
        return chooses and not self.guided and not {"--judge", "--rectify"} & set(words)

    @property
    def has_layouts(self) -> bool:
        """Whether rounds have new layouts."""
        return self.layouts_of(1) > 0

    def layouts_of(self, masks: int) -> int:
        """New layouts a round, of so many masks that train."""
        return RECIPES[self.recipe].layouts * masks if self.layouts is None else self.layouts

    def images_of(self, masks: int, layouts: int) -> int:
        """Images a round, of so many masks that train and so many new layouts."""
        of_each = RECIPES[self.recipe].images
        return self.images or (2 * (masks + layouts) if of_each is None else of_each * masks)

    @property
    def weighted(self) -> bool:
        """Whether the filter weights pixels in the place of taking them out."""
        return self.said("filtering", "--treatment") == "weight"

    def more(self, name: str) -> list[str]:
        """The words of one of ``WORDS``: the recipe's, none beside another treatment or rule, then the user's.

        Raises:
            InputError: quotes that do not close.
        """
        said = self._words(name)
        another = {
            "filtering": self.said(name, "--treatment") not in (None, "relabel"),
            "resampling": self.said(name, "--rule") not in (None, "class"),
        }
        return said if another.get(name) else [*shlex.split(RECIPES[self.recipe].words.get(name, "")), *said]

    def said(self, name: str, option: str) -> str | None:
        """What the user's words ``name`` say of an option of the command that gets them; None where they do not."""
        return _said(self._words(name), option)

    def _words(self, name: str) -> list[str]:
        try:
            return shlex.split(getattr(self, name))
        except ValueError as error:
            raise InputError(f"‹{name}› {one_line(getattr(self, name), 100)}: {error}") from error


def _said(words: Sequence[str], option: str) -> str | None:
    """An option's value in a command's words, the last one's; None where it is not there."""
    line = Parser(add_help=False, allow_abbrev=False)
    line.add_argument(option, nargs="?", const="", dest="said")
    said: str | None = line.parse_known_args(words)[0].said
    return said

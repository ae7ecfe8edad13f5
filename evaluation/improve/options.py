"""What the closed loop may be told."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from common.command import Parser
from common.converters import integer, number
from common.errors import InputError
from common.options import Options, option
from common.schema import one_line
from common.tile_names import SCENE


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
    images: int | None = option(
        None, convert=integer(1), help="images painted in a round (default: two of each training mask)"
    )
    layouts: int = option(0, convert=integer(0), help="new layouts a round, beside the real masks")
    rectify: bool = option(False, help="the segmentor guides the first steps of painting, see --rectify of inference")
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
        for name in ("painting", "training", "allotting", "filtering"):
            self.more(name)
        if any(word.partition("=")[0].replace("_", "-") == "--weight-map-path" for word in self.more("filtering")):
            raise InputError("‹filtering› --weight-map-path: the loop gives it with --treatment weight; leave it out")
        if self.layouts and self._said("painting", "--start-strength") not in (None, "1", "1.0"):
            raise InputError(
                f"‹layouts› {self.layouts}: have no image for --start-strength in ‹painting›; leave one out"
            )

    @property
    def class_table(self) -> Path:
        """The class table's file."""
        return self.classes or self.data / "classes.json"

    @property
    def weighted(self) -> bool:
        """Whether the filter weights pixels in the place of taking them out."""
        return self._said("filtering", "--treatment") == "weight"

    def _said(self, name: str, option: str) -> str | None:
        """What the words of ``name`` say of an option of the command that gets them."""
        line = Parser(add_help=False, allow_abbrev=False)
        line.add_argument(option, nargs="?", dest="said")
        said: str | None = line.parse_known_args(self.more(name))[0].said
        return said

    def more(self, name: str) -> list[str]:
        """The words of ``painting``, ``training``, ``allotting`` or ``filtering``.

        Raises:
            InputError: quotes that do not close.
        """
        try:
            return shlex.split(getattr(self, name))
        except ValueError as error:
            raise InputError(f"‹{name}› {one_line(getattr(self, name), 100)}: {error}") from error

"""The command lines of a closed loop: of its stages, in the order in which they run, and whether they can be read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import house
from common.command import check_words
from common.errors import InputError
from common.files import digest
from evaluation.improve.data import VALIDATION
from evaluation.improve.options import ImproveOptions
from evaluation.improve.training_words import shared_out

Readers = Mapping[str, Callable[[Sequence[str]], object]]  # of scripts: how each reads its words


@dataclass(frozen=True)
class Stage:
    """A command of the loop.

    Attributes:
        folder: of the round, or of the loop.
        name: of log and ``done`` file.
        module: of scripts.
        words: those that the loop gives it.
        more: those that the user adds.
        option: the loop's option that these are of.
        shown: words that are folders which its page shows.
        unstamped: options that change nothing of what comes out, and may change while the loop goes on.
        adds: another command of it adds to what is there, or refuses it itself.
        weights: a file whose content it works with, that others may make anew.
        resumes: file by which a stopped one goes on, of whatever command it was begun by.
    """

    folder: Path
    name: str
    module: str
    words: list[str]
    more: list[str] = field(default_factory=list)
    option: str = ""
    shown: tuple[str, ...] = ()
    unstamped: tuple[str, ...] = ()
    adds: bool = False
    weights: Path | None = None
    resumes: Path | None = None

    @property
    def line(self) -> list[str]:
        """All words."""
        return [*self.words, *self.more]

    @property
    def stamp(self) -> str:
        """A digest of what the stage was told, but for what changes nothing."""
        words, left_out = [], False
        for word in self.line:
            left_out = word in self.unstamped or (left_out and not word.startswith("--"))
            words += [] if left_out else [word]
        return digest(self.module, words)


@dataclass(frozen=True)
class Segmentor:
    """Files of a trained segmentor."""

    config: Path
    weights: str
    metrics: Path


@dataclass(frozen=True)
class Stages:
    """The stages of a loop; each method is one, or a row of them.

    Attributes:
        options: of the loop.
        masks: how many train.
    """

    options: ImproveOptions
    masks: int

    @property
    def count(self) -> int:
        """New layouts a round."""
        return self.options.layouts_of(self.masks)

    @property
    def data(self) -> Path:
        """The loop's own data set, see ``data.fill``."""
        return self.options.out / "data"

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.options.out / f"round_{number}"

    def segmentor(self, number: int, weights: str) -> Segmentor:
        """A round's, once it is trained and validated."""
        work = self.folder(number) / "segmentor"
        return Segmentor(work / Path(self.options.segmentor).name, weights, work / "metrics.json")

    def train(self, number: int) -> Stage:
        """On real images, and from round 1 on with those painted."""
        options, folder = self.options, self.folder(number)
        joint = flags(synthesized=folder / "resampled", repeat=options.repeat, loss_weights=options.weighted)
        joint += self._several()
        words = ["train", options.segmentor, "--resume", *self._of_segmentor(folder), *flags(seed=options.seed)]
        given = ([*words, *(joint if number else [])], *self._training("train"))
        return Stage(folder, "train", "segmentor", *given, resumes=folder / "segmentor" / "last_checkpoint")

    def validate(self, number: int, weights: str) -> Stage:
        """On the scenes that are held out."""
        folder = self.folder(number)
        of_test = flags(load_from=weights, split=VALIDATION)
        words = ["test", self.options.segmentor, *self._of_segmentor(folder), *of_test]
        return Stage(folder, "validate", "segmentor", words, *self._training("test"))

    def _of_segmentor(self, folder: Path) -> list[str]:
        options = self.options
        read = {"data_root": self.data, "classes": options.class_table, "bands": options.bands}
        return flags(work_dir=folder / "segmentor", **read)

    def _training(self, task: str) -> tuple[list[str], str]:
        return shared_out(self.options.more("training"))[task], "training"

    def _several(self) -> list[str]:
        """New layouts lie nowhere on the map, so that their images do not lie on that of the real ones."""
        return flags(several_maps=self.count > 0)

    def layouts(self, number: int) -> Stage:
        """New masks."""
        options, folder = self.options, self.folder(number)
        real, out = self.data / "label_train", folder / "layouts"
        words = flags(mask_path=real, classes=options.class_table, out=out, count=self.count, seed=number)
        return Stage(folder, "layouts", "layouts", words)

    def paint(self, number: int, before: Segmentor, worst: int, masks: int) -> list[Stage]:
        """From masks and references where a segmentor is weak to a training set beside the real images.

        Args:
            number: of the round.
            before: the segmentor.
            worst: classes that count as poor.
            masks: how many there are to paint.
        """
        options, folder, table = self.options, self.folder(number), self.options.class_table
        by, of_round = (before.config, before.weights), self.data / folder.name
        total = options.images_of(self.masks, masks - self.masks)
        allotted = flags(
            data_root=self.data,
            masks=of_round / "items.json",
            references=self.data / "ref_img",
            classes=table,
            bands=options.bands,
            metrics=before.metrics,
            segmentor=by,
            total=total,
            at_least=int(total >= masks),
            first_seed=1000 * number,
            not_among=[self.data / f"img_{split}" for split in options.splits],
            out=folder / "items.json",
        )
        painted = flags(
            config=options.config,
            ckpt=options.ckpt,
            use_ema=options.use_ema,
            data_root=self.data,
            txt_file=folder / "items.json",
            outdir=folder / "images",
            gpus=options.gpus,
            bands=options.bands,
            rectify=by if options.guided else (),
            judge=by if options.needs_judge else (),
        )
        images = flags(syn_img_path=folder / "images", filtered_mask_path=folder / "filtered")
        of_real = flags(real_img_path=self.data / "img_train", real_label_path=self.data / "label_train")
        told = options.more("filtering")  # of the same files
        maps = flags(weight_map_path=folder / "weights" if options.weighted else None)
        made_of = flags(syn_mask_path=of_round / "label", skip_invalid=True)
        named = {option for option in ("rule", "inaccurate", "below") if options.said("resampling", f"--{option}")}
        by_metrics = {} if named & {"rule", "inaccurate"} else {"metrics": before.metrics, "worst": worst}
        if "below" in named:
            by_metrics.pop("worst", None)
        kept = flags(out_dir=folder / "resampled", classes=table, **by_metrics)
        filtered = [*map(str, by), *of_real, *images, *made_of, *maps, *self._several()]
        resampled = [*images, *kept, *maps, *(self._several() or flags(several_maps="--several-maps" in told))]
        return [
            Stage(folder, "allot", "allot", allotted, options.more("allotting"), "allotting"),
            Stage(
                *(folder, "paint", "inference", painted, options.more("painting"), "painting"),
                unstamped=("--gpus",),
                weights=options.ckpt,
            ),
            Stage(folder, "filter", "filter", filtered, told, "filtering"),
            Stage(folder, "resample", "resample", resampled, options.more("resampling"), "resampling"),
        ]

    def compare(self, number: int) -> Stage:
        """Real images alone, and those painted in a round beside them, on the test sets."""
        options, folder = self.options, self.folder(number)
        gallery = flags(
            syn_img_path=folder / "images",
            mask_path=self.data / folder.name / "label",
            filtered_mask_path=folder / "filtered",
        )
        words = flags(
            data_root=self.data,
            classes=options.class_table,
            bands=options.bands,
            synthesized=folder / "resampled",
            arms=("real", "joint+weights") if options.weighted else (),
            repeat=options.repeat,
            seeds=options.seeds,
            jobs=options.jobs,
            splits=options.splits,
            out_dir=options.out / "comparison",
        )
        words = [options.segmentor, *words, *gallery, *self._several()]
        given = (words, *self._training("compare"), tuple(gallery[1::2]))
        return Stage(options.out, "comparison", "compare", *given, unstamped=("--jobs",), adds=True)

    def planned(self, classes: int) -> list[Stage]:
        """All of round 0, of round 1 and the comparison, as they are known before any has run.

        Args:
            classes: of the table.
        """
        weights = [str(self.folder(number) / "segmentor" / "iter_N.pth") for number in (0, 1)]
        worst = self.options.worst or max(1, classes // 2)
        return [
            self.train(0),
            self.validate(0, weights[0]),
            *([self.layouts(1)] if self.count else []),
            *self.paint(1, self.segmentor(0, weights[0]), worst, self.masks + self.count),
            self.train(1),
            self.validate(1, weights[1]),
            self.compare(1),
        ]


def check_lines(stages: Sequence[Stage], readers: Readers, there: Path) -> None:
    """Has each command read its words, before anything runs.

    Args:
        stages: see ``Stages.planned``.
        readers: a command that has none is not asked.
        there: any folder; it stands for those that a parser looks for, and that are yet to be made.

    Raises:
        InputError: one would refuse them; names the loop's option that has them.
    """
    for stage in stages:
        if read := readers.get(stage.module):
            try:
                check_words(read, [str(there) if word in stage.shown else word for word in stage.line])
            except InputError as error:
                said = f"{stage.module} ({stage.name}) says: {error}"
                raise InputError(f"‹{stage.option}›: {said}" if stage.more else said) from error


def flags(**values: Any) -> list[str]:
    """Words of a command line: ``data_root=x`` is --data-root x, True the flag alone; None, False, () are left out."""
    words: list[str] = []
    for name, value in values.items():
        several = value if isinstance(value, tuple | list) else () if value is None or value is False else (value,)
        if several:
            words += [f"--{name.replace('_', '-')}", *(str(one) for one in several if one is not True)]
    return words


def process_of(module: str, words: Sequence[str], processes: int) -> list[str]:
    """What is started for a stage.

    Args:
        module: of scripts.
        words: its own.
        processes: of a segmentor's training, by torchrun.
    """
    command = house.command_of(f"scripts.{module}")
    if processes > 1 and module == "segmentor" and words[0] == "train":
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [command[0], "-m", *launcher, *command[1:]]
    return [*command, *words]


def shown(stages: Sequence[Stage], processes: int) -> str:
    """The stages' commands, as a shell would take them."""
    return "\n".join(
        f"{stage.folder.name}, {stage.name}:\n  {shlex.join(process_of(stage.module, stage.line, processes))}"
        for stage in stages
    )

"""The rounds of a closed loop, each a row of commands that are run once, and the rule by which they end."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import house
from common.errors import InputError
from common.files import digest, write_json
from common.metrics_file import Metrics, read_metrics
from common.processes import Children
from common.schema import Schema, one_line, read_json
from evaluation.improve.data import VALIDATION, round_masks
from evaluation.improve.options import ImproveOptions

Run = Callable[[str, Sequence[str], Path], None]  # a module of scripts, its words, and where its output goes


class _Done(Schema):
    """``<stage>.done.json``: that a stage has ended, of which command, and how long it took."""

    command: str
    seconds: float


@dataclass(frozen=True)
class Round:
    """What came of a round; of round 0, the segmentor trained on real images alone.

    Attributes:
        number: 0, 1, ...
        folder: of the round.
        metrics: on the validation scenes.
        seconds: by stage, of work done.
    """

    number: int
    folder: Path
    metrics: Metrics
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean IoU on the validation scenes, 0..1."""
        return self.metrics.mIoU or 0.0


@dataclass(frozen=True)
class Loop:
    """The closed loop of a folder.

    Attributes:
        options: see there.
        run: runs a command; ``commands`` has the real one.
    """

    options: ImproveOptions
    run: Run

    @property
    def data(self) -> Path:
        """The loop's own data set, see ``cut_in_two``."""
        return self.options.out / "data"

    def rounds(self) -> Iterator[list[Round]]:
        """Yields all rounds so far after each, until some bring nothing: those that are there are read, others made."""
        done = [self._trained(0, self.options.out / "round_0")]
        yield done
        while len(done) <= self.options.rounds and not ended(done, self.options.patience):
            done.append(self._round(len(done), best(done)))
            yield done

    def _round(self, number: int, before: Round) -> Round:
        """One round: masks and references where the best segmentor so far is weak, painted, filtered, learned from."""
        options, folder = self.options, self.options.out / f"round_{number}"
        config, weights = self.segmentor(before)
        seconds: dict[str, float] = {}

        def stage(name: str, module: str, words: Sequence[str], more: str = "") -> None:
            seconds[name] = self._once(folder, name, module, [*words, *shlex.split(more)])

        layouts = folder / "layouts" if options.layouts else None
        table, metrics = options.class_table, before.folder / "segmentor" / "metrics.json"
        if layouts:
            real = self.data / "label_train"
            made = flags(mask_path=real, classes=table, out=layouts, count=options.layouts, seed=number)
            stage("layouts", "layouts", made)
        masks, items, count = round_masks(self.data, f"round_{number}", layouts)
        total = options.images or 2 * count
        chosen = flags(
            data_root=self.data,
            masks=items,
            references=self.data / "ref_img",
            classes=table,
            bands=options.bands,
            metrics=metrics,
            segmentor=(config, weights),
            total=total,
            at_least=int(total >= count),
            first_seed=1000 * number,
            not_among=[self.data / f"img_{split}" for split in options.splits],
            out=folder / "items.json",
        )
        stage("allot", "allot", chosen, options.allotting)
        painted = flags(
            config=options.config,
            ckpt=options.ckpt,
            use_ema=options.use_ema,
            data_root=self.data,
            txt_file=folder / "items.json",
            outdir=folder / "images",
            gpus=options.gpus,
            bands=options.bands,
            rectify=(config, weights) if options.rectify else (),
        )
        stage("paint", "inference", painted, options.painting)
        images = flags(syn_img_path=folder / "images", filtered_mask_path=folder / "filtered")
        of_real = flags(real_img_path=self.data / "img_train", real_label_path=self.data / "label_train")
        words = [config, weights, *of_real, *images, *flags(syn_mask_path=masks, skip_invalid=True)]
        stage("filter", "filter", words, options.filtering)
        worst = options.worst or max(1, len(before.metrics.classes) // 2)
        kept = flags(out_dir=folder / "resampled", classes=table, metrics=metrics, worst=worst)
        stage("resample", "resample", [*images, *kept])
        return self._trained(number, folder, seconds, folder / "resampled")

    def _trained(
        self, number: int, folder: Path, seconds: dict[str, float] | None = None, synthesized: Path | None = None
    ) -> Round:
        """Trains a segmentor, on real images alone or with painted ones, and validates it."""
        options, seconds = self.options, dict(seconds or {})
        read = {"data_root": self.data, "classes": options.class_table, "bands": options.bands}
        shared = flags(work_dir=folder / "segmentor", **read)
        more = shlex.split(options.training)
        joint = flags(synthesized=synthesized, repeat=options.repeat) if synthesized else []
        words = ["train", options.segmentor, "--resume", *shared, *flags(seed=options.seed), *joint, *more]
        seconds["train"] = self._once(folder, "train", "segmentor", words)
        words = ["test", options.segmentor, *shared, *flags(load_from=self._weights(folder), split=VALIDATION), *more]
        seconds["validate"] = self._once(folder, "validate", "segmentor", words)
        return Round(number, folder, read_metrics(folder / "segmentor" / "metrics.json"), seconds)

    def _once(self, folder: Path, stage: str, module: str, words: Sequence[str]) -> float:
        """Runs a stage unless it has ended; a stage of another command is refused. Returns the seconds that it took.

        Raises:
            InputError: it failed, or was done by another command.
        """
        path, command = folder / f"{stage}.done.json", digest(module, list(words))
        if path.exists():
            done = read_json(path, _Done, f"remove {path}, the stage will go on")
            if done.command != command:
                raise InputError(
                    f"‹out› {self.options.out}: {folder.name}/{stage} was done by another command; name another "
                    f"folder, or remove {folder.name} and those after it"
                )
            return done.seconds
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        self.run(module, words, folder / f"{stage}.log")
        seconds = round(time.monotonic() - start, 1)
        write_json({"command": command, "seconds": seconds}, path)
        return seconds

    def segmentor(self, of: Round) -> tuple[str, str]:
        """Config and weights of a round's segmentor."""
        return str(of.folder / "segmentor" / Path(self.options.segmentor).name), self._weights(of.folder)

    def _weights(self, folder: Path) -> str:
        path = folder / "segmentor" / "last_checkpoint"
        try:
            return path.read_text().strip()
        except OSError as error:
            raise InputError(f"{path}: cannot be read; remove {folder}, it will be made again") from error

    def judge(self, winner: Round) -> Path | None:
        """Compares real and joint training on the test sets, once, after all choices; None where no round was better.

        Returns:
            the folder of the comparison.
        """
        options = self.options
        if winner.number == 0:
            return None
        out, folder = options.out / "comparison", winner.folder
        words = flags(
            data_root=self.data,
            classes=options.class_table,
            bands=options.bands,
            synthesized=folder / "resampled",
            repeat=options.repeat,
            seeds=options.seeds,
            jobs=options.jobs,
            splits=options.splits,
            out_dir=out,
            syn_img_path=folder / "images",
            mask_path=self.data / folder.name / "label",
            filtered_mask_path=folder / "filtered",
        )
        more = shlex.split(options.training)
        self._once(options.out, "comparison", "compare", [options.segmentor, *words, *more])
        return out


def flags(**values: Any) -> list[str]:
    """Words of a command line: ``data_root=x`` is --data-root x, True the flag alone; None, False, () are left out."""
    words: list[str] = []
    for name, value in values.items():
        several = value if isinstance(value, tuple | list) else () if value is None or value is False else (value,)
        if several:
            words += [f"--{name.replace('_', '-')}", *(str(one) for one in several if one is not True)]
    return words


def best(rounds: Sequence[Round]) -> Round:
    """The round of the highest score; of equals, the first."""
    return max(rounds, key=lambda one: (one.score, -one.number))


def ended(rounds: Sequence[Round], patience: int) -> bool:
    """Whether so many rounds in a row have brought nothing above all before them."""
    return len(rounds) - 1 - best(rounds).number >= patience


def commands(children: Children, processes: int) -> Run:
    """What runs the commands, one after the other: output goes to a log, and a failure is told in a line.

    Args:
        children: ends them with this process.
        processes: of a segmentor's training, by torchrun.
    """

    def run(module: str, words: Sequence[str], log: Path) -> None:
        command = house.command_of(f"scripts.{module}")
        if processes > 1 and module == "segmentor" and words[0] == "train":
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            command = [command[0], "-m", *launcher, *command[1:]]
        print(f"{log.parent.name}: {log.stem} ({log})", file=sys.stderr, flush=True)
        with log.open("a") as file:
            file.write(f"$ {shlex.join([*command, *words])}\n")
            file.flush()
            code = children.run(
                [*command, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=house.environment(),
            )
        if code:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("error: ")]
            raise InputError(f"{log}: scripts.{module} ended with code {code}: {one_line((errors or said)[-1], 1000)}")

    return run

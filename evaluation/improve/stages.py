"""The rounds of a closed loop, each a row of commands that are run once, and the rule by which they end."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import house
from common.errors import InputError
from common.files import file_hash, write_json
from common.metrics_file import Metrics, read_metrics
from common.processes import Children
from common.schema import Schema, one_line, read_json
from evaluation.improve.data import round_masks
from evaluation.improve.lines import Segmentor, Stage, Stages, process_of
from evaluation.improve.options import ImproveOptions

Run = Callable[[str, Sequence[str], Path], None]  # a module of scripts, its words, and where its output goes


class _Done(Schema):
    """``<stage>.done.json``: that a stage has ended, of which command, and how long it took; ``.begun.json`` alike.

    ``weights`` is the hash of those that painted, which are trained elsewhere.
    """

    command: str
    seconds: float
    weights: str = ""


@dataclass(frozen=True)
class Round:
    """What came of a round; of round 0, the segmentor trained on real images alone.

    Attributes:
        number: 0, 1, ...
        folder: of the round.
        metrics: on the validation scenes, of the classes that they show.
        seconds: by stage, of work done.
    """

    number: int
    folder: Path
    metrics: Metrics
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean IoU of the classes that the validation scenes show, 0..1."""
        return self.metrics.mIoU or 0.0

    @property
    def not_shown(self) -> list[str]:
        """Classes that the validation scenes do not show."""
        return [name for name, scores in self.metrics.classes.items() if scores.IoU is None]


@dataclass(frozen=True)
class Loop:
    """The closed loop of a folder.

    Attributes:
        stages: its commands.
        run: runs a command; ``commands`` has the real one.
    """

    stages: Stages
    run: Run

    @property
    def options(self) -> ImproveOptions:
        """Of the loop."""
        return self.stages.options

    def rounds(self) -> Iterator[list[Round]]:
        """Yields all rounds so far after each, until some bring nothing: those that are there are read, others made."""
        done = [self._trained(0, {})]
        yield done
        while len(done) <= self.options.rounds and not ended(done, self.options.patience):
            done.append(self._round(len(done), best(done)))
            yield done

    def _round(self, number: int, before: Round) -> Round:
        """One round: masks and references where the best segmentor so far is weak, painted, filtered, learned from."""
        stages, seconds = self.stages, {}
        layouts = stages.folder(number) / "layouts" if stages.count else None
        if layouts:
            seconds["layouts"] = self._once(stages.layouts(number))
        masks = round_masks(stages.data, f"round_{number}", layouts)
        worst = self.options.worst or max(1, (len(before.metrics.classes) - len(before.not_shown)) // 2)
        for stage in stages.paint(number, self._segmentor(before.number), worst, masks):
            seconds[stage.name] = self._once(stage)
        return self._trained(number, seconds)

    def _trained(self, number: int, seconds: dict[str, float]) -> Round:
        """Trains a segmentor, on real images alone or with painted ones, and validates it."""
        seconds = {**seconds, "train": self._once(self.stages.train(number))}
        segmentor = self._segmentor(number)
        seconds["validate"] = self._once(self.stages.validate(number, segmentor.weights))
        return Round(number, self.stages.folder(number), read_metrics(segmentor.metrics).of_shown(), seconds)

    def _once(self, stage: Stage) -> float:
        """Runs a stage unless it has ended; a stage of another command is refused. Returns the seconds that it took.

        Raises:
            InputError: it failed, or was begun or done by another command.
        """
        folder, command = stage.folder, stage.stamp
        path, begun = (folder / f"{stage.name}.{state}.json" for state in ("done", "begun"))
        for there, counts in ((path, True), (begun, stage.resumes is not None and stage.resumes.exists())):
            if not (counts and there.exists()):
                continue
            before = read_json(there, _Done, f"remove {there}, the stage will go on")
            if before.command != command and not stage.adds:
                raise InputError(
                    f"‹out› {self.options.out}: {folder.name}/{stage.name} was {there.name.split('.')[-2]} by another "
                    f"command; name another folder, or remove {folder.name} and those after it"
                )
            if before.command == command and there == path:
                if before.weights and stage.weights and before.weights != file_hash(stage.weights):
                    raise InputError(
                        f"‹ckpt› {stage.weights}: is not what {folder.name} was painted with; name another folder, or "
                        f"remove {folder.name} and those after it"
                    )
                return before.seconds
        folder.mkdir(parents=True, exist_ok=True)
        if stage.resumes:
            write_json({"command": command, "seconds": 0.0}, begun)
        start = time.monotonic()
        self.run(stage.module, stage.line, folder / f"{stage.name}.log")
        seconds = round(time.monotonic() - start, 1)
        hashed = {"weights": file_hash(stage.weights)} if stage.weights else {}
        write_json({"command": command, "seconds": seconds, **hashed}, path)
        return seconds

    def _segmentor(self, number: int) -> Segmentor:
        """A round's, with the weights that its training says."""
        folder = self.stages.folder(number)
        path = folder / "segmentor" / "last_checkpoint"
        try:
            return self.stages.segmentor(number, path.read_text().strip())
        except OSError as error:
            raise InputError(f"{path}: cannot be read; remove {folder}, it will be made again") from error

    def judge(self, winner: Round) -> Path | None:
        """Compares real and joint training on the test sets, once, after all choices; None where no round was better.

        Returns:
            the folder of the comparison.
        """
        if winner.number == 0:
            return None
        self._once(self.stages.compare(winner.number))
        return self.options.out / "comparison"


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
        command = process_of(module, words, processes)
        print(f"{log.parent.name}: {log.stem} ({log})", file=sys.stderr, flush=True)
        with log.open("a") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            code = children.run(
                command,
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

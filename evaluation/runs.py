"""The trainings and tests of a comparison: what each was made from, what is left to do, and that no two are one."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common import house
from common.command import note
from common.devices import visible_gpus
from common.errors import InputError
from common.files import write_json
from common.metrics_file import Metrics, read_metrics
from common.options import words
from common.processes import Children
from common.schema import Schema, one_line, read_json
from common.segmentor_options import SegmentorOptions, TestOptions, TrainOptions
from common.stamps import changed
from common.weights import read_tensors, refuse_not_finite
from evaluation.arms import Arm
from evaluation.comparison import SCORES

KINDS = ("baseline", "joint")  # of a comparison without further arms
Stamp = Mapping[str, str | int]


class _Stamp(Schema):
    """``stamp.json``, written before a training: what it is made from, by name."""

    made_from: dict[str, str | int]


class _Trained(Schema):
    """``trained``, written after a training: the weights' file in the run's folder, and a hash of their values.

    ``seconds``: that the training took, if it was not stopped; runs of former versions have none.
    """

    weights: str
    values: str
    seconds: float | None = None


class _Tested(Metrics):
    """``metrics_<split>.json``: what the segmentor's test wrote, and what it was made from."""

    test_set: str
    weights: str


@dataclass(frozen=True)
class Outcome:
    """A finished run: the hash of its weights' values, and its metrics by split."""

    values: str
    metrics: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """All trainings and tests of a comparison.

    Attributes:
        out_dir: holds ``runs/<kind>_seed_<seed>``.
        seeds: their number.
        arms: by kind, for every seed.
        made_from: what trainings are made from, by kind.
        test_sets: hashes of the test sets by split.
    """

    out_dir: Path
    seeds: int
    arms: Mapping[str, Arm]
    made_from: Mapping[str, Stamp]
    test_sets: Mapping[str, str]

    def jobs(self) -> list[tuple[str, int]]:
        """Kinds and seeds in the order of training.

        All arms of a seed before the next seed's, so that a comparison that is stopped has whole pairs; of a seed, what
        learns from its teacher's labels at last.
        """
        kinds = sorted(self.arms, key=lambda kind: self.arms[kind].teacher is not None)
        return [(kind, seed) for seed in range(self.seeds) for kind in kinds]

    def _iterations(self, kind: str) -> int:
        """Of one seed's trainings of an arm, without its teacher's."""
        before = self.arms[kind].pretraining
        return int(self.made_from[kind]["max_iters"] or 0) + (before.max_iters or 0 if before else 0)

    def cost(self, kind: str) -> int:
        """Iterations of all that an arm needs: its teacher, too, has trained as long as the real arm."""
        return self._iterations(kind) + (self._iterations("baseline") if self.arms[kind].teacher else 0)

    def plan(self, at_once: int, each: bool = False) -> list[str]:
        """What is left to do, in words, and how long it takes by what is done.

        Args:
            at_once: trainings at a time.
            each: also a line for each arm.

        Returns:
            Lines; none where nothing is left.
        """
        done = {job: trained for job in self.jobs() if (trained := _trained(self.folder(*job)))}
        todo = [job for job in self.jobs() if job not in done]
        if not todo and not each:
            return []
        own = {kind: self._iterations(kind) for kind in self.arms}
        iterations = sum(own[kind] for kind, _ in todo)
        trained_of = [kind for kind, _ in done]
        lines = [
            f"{arm.recipe.name}: {trained_of.count(kind)} of {self.seeds} trained, {own[kind]} iterations each"
            for kind, arm in self.arms.items()
            if each
        ]
        lines.append(
            f"{len(todo)} of {len(todo) + len(done)} trainings left ({len(self.arms)} arms, {self.seeds} seeds), "
            f"{iterations} iterations, {at_once} at once"
        )
        timed = [(trained.seconds, own[kind]) for (kind, _), trained in done.items() if trained.seconds and own[kind]]
        if timed and todo:
            pace = sum(seconds for seconds, _ in timed) / sum(count for _, count in timed)
            lines.append(f"about {iterations * pace / at_once / 60:.0f} minutes, by {len(timed)} that are done")
        elif todo:
            lines.append("how long that takes is known once the first training is done; ask again with ‹plan›")
        return lines

    def folder(self, kind: str, seed: int) -> Path:
        """Where one training keeps its weights, log and metrics."""
        return self.out_dir / "runs" / f"{kind}_seed_{seed}"

    def is_done(self) -> bool:
        """Whether nothing is left to train or test."""
        return all(_metrics(self.folder(*job), split).is_file() for job in self.jobs() for split in self.test_sets)

    def check(self) -> None:
        """Refuses what is there already and was made from something else.

        Raises:
            InputError: names the folder and what differs, or the file that is damaged or foreign.
        """
        for folder in sorted((self.out_dir / "runs").glob("*_seed_*")):
            kind = folder.name.split("_seed_")[0]
            if kind not in self.arms or not any(path.name[0] != "." for path in folder.iterdir()):
                continue
            stamp = read_json(folder / "stamp.json", _Stamp, f"remove {folder}, it will be made again")
            other = changed(stamp.made_from, self.made_from[kind])
            trained = _trained(folder)
            for split, test_set in self.test_sets.items():
                tested = _tested(folder, split)
                if tested and tested.test_set != test_set:
                    other.append(f"test images and masks ({split})")
                if tested and trained and tested.weights != trained.values:
                    raise InputError(
                        f"{_metrics(folder, split)}: is of other weights than {folder / 'trained'}; "
                        "remove it, it will be made again"
                    )
            if other:
                raise InputError(
                    f"‹out_dir› {self.out_dir}: {folder.name} holds runs with other {', '.join(other)}; "
                    "name another folder, or remove this one to make all again"
                )

    def run(self, jobs_at_once: int) -> dict[str, list[Outcome]]:
        """Trains and tests what is left to do, and returns all outcomes by kind.

        Raises:
            InputError: a training or test failed, or two trainings are one.
        """
        jobs, done = self.jobs(), dict[tuple[str, int], Outcome]()
        turns = (itertools.cycle(visible_gpus()),)
        with Children() as children, ThreadPoolExecutor(jobs_at_once, initializer=_take_gpu, initargs=turns) as pool:
            try:
                with tqdm(desc="trainings", total=len(jobs), unit="run") as bar:  # closed before an error is told
                    begun: dict[tuple[str, int], Future[Outcome]] = {}
                    for job in jobs:
                        # a teacher is done before it is asked; it comes earlier, so no two wait for each other
                        teacher = begun["baseline", job[1]] if self.arms[job[0]].teacher else None
                        begun[job] = pool.submit(self._run_after, teacher, children, *job)
                    for job, running in begun.items():
                        outcome = running.result()
                        bar.update()
                        self._refuse_twins(job, outcome, done)
                        done[job] = outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                children.stop()
                raise
        return {kind: [done[kind, seed] for seed in range(self.seeds)] for kind in self.arms}

    def _run_after(self, other: Future[Outcome] | None, children: Children, kind: str, seed: int) -> Outcome:
        """Trains and tests one seed once another job, if there is one, has ended well."""
        if other is not None:
            other.result()
        return self._run(children, kind, seed)

    def _run(self, children: Children, kind: str, seed: int) -> Outcome:
        """Trains and tests one seed, where that is not done yet."""
        folder = self.folder(kind, seed)
        training = replace(self.arms[kind].training, work_dir=folder, seed=seed, unchecked=True, resume=True)
        trained = _trained(folder)
        if trained is None:
            fresh, began = not (folder / "stamp.json").exists(), time.monotonic()
            write_json({"made_from": dict(self.made_from[kind])}, folder / "stamp.json")
            segmentor(children, ["train", *words(self._begun(children, kind, training))], folder / "log.txt")
            weights = _weights_of(folder)
            trained = _Trained(
                weights=weights.name,
                values=hash_of_values(_read_weights(weights)),
                seconds=round(time.monotonic() - began, 1) if fresh else None,
            )
            write_json(trained.model_dump(), folder / "trained")
        metrics = {}
        for split, test_set in self.test_sets.items():
            tested = _tested(folder, split)
            if tested is None:
                tested = self._test(children, training, trained, split, test_set)
            metrics[split] = tested.model_dump()
        return Outcome(trained.values, metrics)

    def _begun(self, children: Children, kind: str, training: TrainOptions) -> TrainOptions:
        """The training with what its arm makes before it: pseudo-labels, weights that it starts from."""
        from segmentation.saving import last_weights  # mmengine takes seconds to load

        arm, seed = self.arms[kind], training.seed or 0
        folder = self.folder(kind, seed)
        if arm.teacher is not None:
            weights = _weights_of(self.folder("baseline", seed))
            labeling = replace(arm.teacher, load_from=weights, out=folder / "pseudo")
            segmentor(children, ["predict", *words(labeling)], folder / "log.txt")
            check_sure(labeling.out)
            training = replace(training, pseudo_images=labeling.images, pseudo_masks=folder / "pseudo" / "masks")
        if arm.pretraining is not None and last_weights(folder) is None:
            first = replace(arm.pretraining, work_dir=folder / "pretraining", seed=seed, unchecked=True, resume=True)
            segmentor(children, ["train", *words(first)], folder / "log.txt")
            training = replace(training, load_from=_weights_of(folder / "pretraining"), resume=False)
        return training

    def _test(
        self, children: Children, training: TrainOptions, trained: _Trained, split: str, test_set: str
    ) -> _Tested:
        folder = Path(training.work_dir or self.out_dir)
        weights, said = folder / trained.weights, folder / f".metrics_{split}.json"
        if not weights.is_file() or hash_of_values(_read_weights(weights)) != trained.values:
            raise InputError(f"{weights}: is not what was trained there; remove {folder}, it will be made again")
        test = replace(test_options(training, split), load_from=weights, out=said)
        segmentor(children, ["test", *words(test)], folder / "log.txt")
        tested = _Tested(**read_metrics(said).model_dump(), test_set=test_set, weights=trained.values)
        write_json(tested.model_dump(), _metrics(folder, split))
        said.unlink()
        return tested

    def _refuse_twins(self, job: tuple[str, int], outcome: Outcome, done: Mapping[tuple[str, int], Outcome]) -> None:
        """Refuses a run that repeats one: its seed or its data had no effect, and the interval would be a lie."""
        for other, earlier in done.items():
            same = ["weights"] if outcome.values == earlier.values else []
            same += [
                f"metrics on {split}"
                for split, scores in outcome.metrics.items()
                if _scores(scores) == _scores(earlier.metrics[split])
            ]
            if same:
                raise InputError(
                    f"{self.folder(*job)} and {self.folder(*other)}: their {' and '.join(same)} are identical, so they "
                    "are one run, not two, and say nothing about chance or data; look for what fixes the random state "
                    "or the data in the config, then name another ‹out_dir›"
                )


def check_sure(labels: Path) -> None:
    """Says it where a teacher is sure of little, and refuses labels without a single class.

    Raises:
        InputError: it is sure of no pixel.
    """
    from segmentation.sureness import LITTLE, read_sureness  # as above

    sureness = read_sureness(labels)
    if sureness.nothing:
        raise InputError(
            f"{labels}: the teacher is sure of no pixel, its pupil would learn nothing; remove {labels.parent}, and "
            "lower ‹sure›"
        )
    if sureness.share < LITTLE:
        note(f"{labels}: the teacher is {sureness.line()}")


def _scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in (*SCORES, "classes")}


def _metrics(folder: Path, split: str) -> Path:
    return folder / f"metrics_{split}.json"


def _tested(folder: Path, split: str) -> _Tested | None:
    path = _metrics(folder, split)
    return read_json(path, _Tested, f"remove {path}, it will be made again") if path.exists() else None


def _trained(folder: Path) -> _Trained | None:
    path = folder / "trained"
    return read_json(path, _Trained, f"remove {path}, it will be made again") if path.exists() else None


def test_options(training: TrainOptions, split: str) -> TestOptions:
    """Those of a test set's test that are the training's, too."""
    shared = {field.name: getattr(training, field.name) for field in fields(SegmentorOptions)}
    return TestOptions(split=split, **shared)


def _weights_of(folder: Path) -> Path:
    """The weights that a training left.

    Raises:
        InputError: none that are whole.
    """
    from segmentation.saving import named_weights  # mmengine takes seconds to load

    weights = named_weights(folder)
    if weights is None:
        raise InputError(f"{folder}: its training left no whole weights; remove it, it will be made again")
    return weights


def _read_weights(path: Path) -> dict[str, Tensor]:
    state = read_tensors(path)
    refuse_not_finite(state, path, "take another checkpoint")
    return state


def hash_of_values(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names: files of equal weights differ in time stamps and the like."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


_thread = threading.local()  # ``sees``: what the commands that this thread starts are told of GPUs


def _take_gpu(turns: Iterator[str]) -> None:
    """Gives a thread one of several GPUs for its own, so that trainings at a time are not all on the first."""
    _thread.sees = {"CUDA_VISIBLE_DEVICES": gpu} if (gpu := next(turns, None)) else {}


def segmentor(children: Children, line: Sequence[str], log: Path) -> None:
    """Runs scripts/segmentor.py in a process of its own; what it prints goes to ``log``.

    Raises:
        InputError: it failed; repeats the last line of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        code = children.run(
            [*house.command_of("scripts.segmentor"), *line],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=house.environment() | getattr(_thread, "sees", {}),
        )
    if code < 0:
        raise InputError(f"{log}: scripts.segmentor was ended by signal {-code} (9: is memory short? fewer ‹jobs›)")
    if code:
        last = next(_lines_from_the_end(log), "no output")
        raise InputError(f"{log}: scripts.segmentor ended with code {code}: {one_line(last, 1000)}")


def _lines_from_the_end(path: Path) -> Iterator[str]:
    yield from filter(str.strip, reversed(path.read_text(errors="replace").splitlines()))

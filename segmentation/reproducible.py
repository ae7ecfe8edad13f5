"""Random numbers of a segmentor's training: they follow from the seed and the place in the training alone.

So a resumed training is an unbroken one, whatever the number of data workers: the order is that of the config's
sampler, taken up at the place where it stopped; augmentation is seeded for each draw of an item, the model (dropout)
for each iteration.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset

from common.errors import InputError
from common.processes import end_with_parent
from common.rng import Stream, seed_from


class Drawn(int):
    """An index into a data set, and the seed of this one draw of it."""

    seed: int


class NumberedBatches:
    """The batches of a batch sampler as ``Drawn`` indices, from any place on."""

    def __init__(self, batches: Any, seed: int, endless: bool) -> None:
        self.batches, self.seed, self.endless = batches, seed, endless
        self.sampler: Any = getattr(batches, "sampler", None)
        self.batch_size = getattr(batches, "batch_size", None)
        self.epoch = self.skipped = 0

    def begin(self, epoch: int, skipped: int) -> None:
        """Says where the next iteration starts: at an epoch, and how many of its batches are done."""
        self.epoch, self.skipped = epoch, skipped

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Drawn]]:
        epoch, skipped = self.epoch, self.skipped
        self.skipped = 0
        while True:
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            for number, batch in enumerate(self.batches):
                if skipped:
                    skipped -= 1
                    continue
                yield [self._drawn(index, epoch, number, position) for position, index in enumerate(batch)]
            if not self.endless:
                return
            epoch += 1

    def _drawn(self, index: int, *draw: int) -> Drawn:
        drawn = Drawn(index)
        drawn.seed = seed_from(self.seed, Stream.SEGMENTOR_ITEM, get_rank(), *draw)
        return drawn


class SeededItems(Dataset[Any]):
    """A data set whose items are augmented as the draw's seed says; all else is the data set's own."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, Drawn):
            _seed_generators(index.seed)
        return self.dataset[int(index)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # a worker that unpickles this asks before the data set is there
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the generator that mmcv's augmentations use)
    torch.default_generator.manual_seed(seed)


def number_draws(loop: Any, seed: int) -> None:
    """Has a training loop of mmengine draw its items by number.

    Raises:
        InputError: there is not one batch.
    """
    loader = loop.dataloader
    if not isinstance(loop, (IterBasedTrainLoop, EpochBasedTrainLoop)) or loader.batch_sampler is None:
        return  # another package's loop: it draws as it likes
    if not len(loader):
        raise InputError(
            f"train_dataloader: {len(loader.dataset)} items are not one batch of {loader.batch_size}; "
            "lower batch_size, or drop_last=False"
        )
    batches = NumberedBatches(loader.batch_sampler, seed, isinstance(loop, IterBasedTrainLoop))
    options = {
        name: getattr(loader, name)
        for name in (
            "num_workers",
            "collate_fn",
            "pin_memory",
            "timeout",
            "prefetch_factor",
            "persistent_workers",
            "generator",
        )
    }
    loop.dataloader = DataLoader(
        SeededItems(loader.dataset),
        batch_sampler=batches,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=_WorkerStart(loader.worker_init_fn),
        **options,
    )
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = EndlessBatches(loop.dataloader, batches)


class _WorkerStart:
    """What a data worker does first: it ends with its command, even by SIGKILL."""

    def __init__(self, also: Callable[[int], None] | None) -> None:
        self.also = also

    def __call__(self, worker: int) -> None:
        end_with_parent()
        if self.also:
            self.also(worker)


class EndlessBatches:
    """An iteration-based loop's batches; workers start with the first one."""

    def __init__(self, loader: DataLoader[Any], batches: NumberedBatches) -> None:
        self.loader, self.batches = loader, batches
        self.iterator: Iterator[Any] | None = None

    def skip_iter(self, count: int) -> None:
        """Goes on after ``count`` batches, without reading their images."""
        self.batches.begin(0, count)
        self.iterator = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.iterator is None:
            self.iterator = iter(self.loader)
        return next(self.iterator)


class TrainingHook(Hook):
    """Seeds each iteration, and stops a training whose loss is no number before that is saved."""

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        """Takes an epoch up where a resumed training stopped within it."""
        batches = runner.train_dataloader.batch_sampler
        if isinstance(batches, NumberedBatches) and not batches.endless:
            batches.begin(runner.epoch, max(0, runner.iter - runner.epoch * len(batches)))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds what the model draws."""
        seed = seed_from(runner.seed, Stream.SEGMENTOR_STEP, get_rank(), runner.iter)
        _seed_generators(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(seed)

    def after_train(self, runner: Runner) -> None:
        """Ends an endless loop's workers, which would stay until Python tidies up."""
        if isinstance(batches := getattr(runner.train_loop, "dataloader_iterator", None), EndlessBatches):
            batches.iterator = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Looks at the loss; on a GPU now and then, since looking waits for it.

        Raises:
            InputError: it is nan or infinite.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if (
            isinstance(loss, torch.Tensor)
            and (loss.device.type == "cpu" or runner.iter % 20 == 0)
            and not torch.isfinite(loss).all()
        ):
            raise InputError(
                f"{runner.cfg.filename}: the loss is {float(loss.detach().mean())} at iteration "
                f"{runner.iter + 1}, the weights saved last are kept; lower the learning rate "
                "(‹cfg_options› optim_wrapper.optimizer.lr=...) and start again in another folder"
            )

"""A clean end of a training on SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from ldm.training.checkpoints import LastCheckpoint
from ldm.training.loaders import AT_END_OF_TIME

log = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar without the logger's version, and of a run that goes on: with its own rate and time left.

    Lightning's counts the batches that the epoch had before as made by this process, and leaves them out of the total.
    """

    @property
    def total_train_batches(self) -> int | float:
        """Of the epoch at hand, those before the run was resumed included; fewer where ``max_steps`` ends it."""
        trainer = self.trainer
        if trainer.max_steps < 0:
            return trainer.num_training_batches
        left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
        return min(trainer.num_training_batches, self._done_before() + left)

    def on_train_start(self, trainer: pl.Trainer, *more: Any) -> None:
        """Begins the epoch, too, that a run goes on within: Lightning does not, and the bar would have no end."""
        super().on_train_start(trainer, *more)
        if self._done_before():
            self.on_train_epoch_start(trainer, *more)

    def on_train_epoch_start(self, trainer: pl.Trainer, *more: Any) -> None:
        """Begins where the epoch does, or where the run goes on within it."""
        super().on_train_epoch_start(trainer, *more)
        self.train_progress_bar.initial = self.train_progress_bar.n = self._done_before()

    def _done_before(self) -> int:
        loop = self.trainer.fit_loop.epoch_loop
        return int(loop.batch_progress.current.ready % self.trainer.num_training_batches)  # of all: the epoch before's

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Losses alone."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_exception(self, *_: Any) -> None:
        """Ends its lines, so that the reason stands on one of its own."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Within the block, Ctrl-C is a ``KeyboardInterrupt``; Lightning makes it the exit code of a failure."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


class StoppedInValidation(Exception):
    """A signal came during validation; the run is saved."""


class StopOnSignal(pl.Callback):
    """On SIGTERM (a cluster's end of time) or Ctrl-C, saves ``checkpoints/last.ckpt`` after the batch at hand and ends.

    A second Ctrl-C ends the run at once. SIGUSR1, which some jobs ask for in the place of SIGTERM, is taken for it.

    Args:
        last: writes it.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self._last = last
        self._received = 0
        self._before: dict[int, Any] = {}
        self.stopped = 0  # the signal that ended the run before its time

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signals."""
        numbers = (*AT_END_OF_TIME, signal.SIGINT)
        self._before = {number: signal.signal(number, self._receive) for number in numbers}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives them back."""
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Gives them back; Lightning calls ``teardown`` only after a good end."""
        self._give_back()

    def _give_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def _receive(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._received == number:
                raise KeyboardInterrupt
            os.write(2, b"\nCtrl-C: stops after this batch; once more: at once\n")  # print may be what it interrupts
        self._received = signal.SIGTERM if number in AT_END_OF_TIME else number

    def _save(self, trainer: pl.Trainer) -> bool:
        """Saves if any process has received a signal, on all of them at the same batch."""
        if not trainer.strategy.reduce_boolean_decision(self._received > 0, all=False):
            return False
        self.stopped = self._received or signal.SIGTERM
        path = self._last.save(trainer)
        name = "Ctrl-C" if self.stopped == signal.SIGINT else "SIGTERM"
        if trainer.is_global_zero:
            log.info("%s: saved %s after step %d; go on with --resume", name, path, trainer.global_step)
        return True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops, unless gradients are being accumulated, which no checkpoint holds."""
        if not self._accumulating(trainer, batch_idx) and self._save(trainer):
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate first; the cluster does not wait

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves and stops; Lightning's own way out of a validation, the end of its loop, may be minutes away.

        Raises:
            StoppedInValidation: saved.
        """
        if trainer.sanity_checking or self._accumulating(trainer, trainer.fit_loop.epoch_loop.batch_idx):
            return
        if self._save(trainer):
            raise StoppedInValidation

    @staticmethod
    def _accumulating(trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether gradients of this batch wait for others'."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not last

"""A run's checkpoints: written whole, ``last.ckpt`` truly the last, and from each a run goes on as if unbroken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from common.files import atomic_path, full_disk, sync
from common.weights import read_checkpoint

log = logging.getLogger(__name__)

FOLDER, LAST, CONFIG_NAME = "checkpoints", "last.ckpt", "config.yaml"  # in a run's folder


class TrainingDiverged(RuntimeError):
    """The loss is not a finite number any more."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their final name, then renames them; reads them without running what they hold.

    Lightning's own way leads through memory and the system's temporary folder, which may be small, and from which a
    move to another disk is a copy that a kill cuts off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one checkpoint, whole or not at all."""
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
            sync(temporary)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads one checkpoint, in memory of its own: the file may be replaced, and its room is then free."""
        return read_checkpoint(path, mapped=False)


class RunPosition(pl.Callback):
    """Where a run stands, in every checkpoint, and that a resumed run goes on from there as if it were unbroken.

    Lightning's own counters depend on the hook in which a checkpoint was written: they are one epoch ahead when
    ``max_steps`` or a signal ended an epoch early, and leave out a validation that was due. Batches, the epoch's
    number (in names of checkpoints) and validations would shift. Here all follow from the data module's state.

    To be named before any callback that saves.
    """

    def __init__(self) -> None:
        self.validation_due = False  # for the weights at hand, and not done yet
        self.between_steps = False  # the weights at hand are of this position: no step is half done
        self.started = False
        self.at_start: Callable[[], None] = lambda: None
        self._data: dict[str, Any] = {}  # the data module's state after the latest step
        self._counters: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """Its name in checkpoints of before version 1.0, so that those runs go on."""
        return "Place"

    def state_dict(self) -> dict[str, Any]:
        """Whether a validation is due."""
        return {"validation_due": self.validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``state_dict``."""
        self.validation_due = bool(state_dict.get("validation_due"))

    def on_save_checkpoint(self, trainer: pl.Trainer, _: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the position after the latest step, even if Lightning is already at the next."""
        if self._data:
            checkpoint[type(trainer.datamodule).__qualname__] = dict(self._data)  # type: ignore[attr-defined]
            checkpoint["loops"]["fit_loop"].update(self._counters)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets Lightning's counters."""
        self.at_start()
        self.started = True
        loop = trainer.fit_loop
        self._remember(trainer)
        self.between_steps = True
        if not loop.is_resuming:
            return
        epoch_loop = loop.epoch_loop
        validation, self.validation_due = self.validation_due, False
        for due in (True, False) if validation else (False,):
            counters = self._count(trainer, epoch_ended=due)
            loop.epoch_progress.load_state_dict(counters["epoch_progress"])
            epoch_loop.batch_progress.load_state_dict(counters["epoch_loop.batch_progress"])
            here = epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
            if due and here:
                self.validation_due = True
                break
        progress = epoch_loop.val_loop.batch_progress
        progress.reset()
        progress.total.ready = progress.total.started = int(self.validation_due)  # type: ignore[attr-defined]
        loop.restarting = True  # decides what it means from the counters
        loop.update_restart_stage()
        within = epoch_loop.batch_progress.current.ready > 0
        if not within:
            epoch_loop.restarting = False
        # the logger's step is behind until the validation at this position is over, or skipped as done
        epoch_loop._batches_that_stepped = trainer.global_step - (within and here)

    def on_before_optimizer_step(self, *_: Any) -> None:
        """From now on, the weights are neither the old nor the new."""
        self.between_steps = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Remembers the position after a step."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # gradients wait for others'; no checkpoint holds them
            return
        self._remember(trainer)
        self.validation_due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        self.between_steps = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It is done."""
        if not trainer.sanity_checking:
            self.validation_due = False

    def _remember(self, trainer: pl.Trainer) -> None:
        self._data = trainer.datamodule.state_dict()  # type: ignore[attr-defined]
        self._counters = self._count(trainer)

    @staticmethod
    def _count(trainer: pl.Trainer, epoch_ended: bool = False) -> dict[str, Any]:
        """Lightning's counters at the data module's position.

        Args:
            trainer: the trainer.
            epoch_ended: between two epochs, count as at the end of the first, not as at the begin of the second.
        """
        loop = trainer.fit_loop
        done = trainer.datamodule.batches_before()  # type: ignore[attr-defined]
        epochs, batches = divmod(done, int(loop.max_batches))
        if epoch_ended and batches == 0:
            epochs, batches = epochs - 1, int(loop.max_batches)
        total = loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        begun = epochs + (batches > 0)
        epoch = {"ready": begun, "started": begun, "processed": epochs, "completed": epochs}
        keys = ("ready", "started", "processed", "completed")
        return {
            "epoch_progress": {"total": dict(epoch), "current": dict(epoch)},
            "epoch_loop.batch_progress": {
                "total": dict.fromkeys(keys, total),
                "current": dict.fromkeys(keys, batches),
                "is_last_batch": batches == loop.max_batches,
            },
        }


class KeptCheckpoints(ModelCheckpoint):
    """The best checkpoints, or the latest epoch's: Lightning's, but none for an epoch that was cut short."""

    @property
    def state_key(self) -> str:
        """Lightning's, so that older runs go on."""
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint", 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves, if the epoch is whole."""
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            super().on_train_epoch_end(trainer, pl_module)


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt``: at the end of epochs, every so many steps, and at the end of training.

    Lightning's ``save_last`` writes it with a kept checkpoint alone, and not where the validation loss has risen.

    To be named after all other callbacks, whose state it holds.

    Args:
        position: where the run stands.
        every: steps between two writings, beside those at the end of epochs; None for none.
        every_n_epochs: epochs between two writings.
    """

    def __init__(self, position: RunPosition, every: int | None = None, every_n_epochs: int = 1) -> None:
        self.position = position
        self.every, self.every_n_epochs = every, every_n_epochs
        self._saved: Any = None

    def save(self, trainer: pl.Trainer) -> Path:
        """Writes it now, on all processes together; not again if nothing has changed.

        Returns:
            its path.
        """
        path = Path(trainer.default_root_dir) / FOLDER / LAST
        holds = self._holds(trainer)
        if holds != self._saved:
            trainer.save_checkpoint(path)
            self._saved = holds
        return path

    def _holds(self, trainer: pl.Trainer) -> Any:
        kept = [(c.best_model_path, *c.best_k_models) for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]  # type: ignore[attr-defined]
        return trainer.global_step, self.position.validation_due, kept

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Every so many steps."""
        if self.every and self.position.between_steps and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """At the end of epochs; one that was cut short is the end of training."""
        whole = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        if whole and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """At the end, whatever the reason."""
        if self.position.between_steps:
            self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """After a failure: the latest step's state, unless it is what failed.

        Not after a full disk, a second Ctrl-C, or a loss that is no number: those weights would give it again at once.
        """
        hopeless = isinstance(exception, KeyboardInterrupt | TrainingDiverged) or full_disk(exception) is not None
        alone = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)  # others need all processes, alive
        if hopeless or not (self.position.started and self.position.between_steps and alone and trainer.is_global_zero):
            return
        if trainer.global_step == 0 or self._holds(trainer) == self._saved:
            return
        path = Path(trainer.default_root_dir) / FOLDER / LAST
        try:  # not trainer.save_checkpoint, which waits for the other processes
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(False)
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, path)
        except Exception as error:  # the first failure is the one to tell
            log.warning("%s: cannot be written (%s)", path, " ".join(str(error).split())[:200])

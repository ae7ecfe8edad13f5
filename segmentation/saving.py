"""A training's weights: written whole under a temporary name, then named by ``last_checkpoint``, then old ones go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from common.errors import InputError
from common.files import atomic_path
from common.weights import CodeError, read_checkpoint

POINTER = "last_checkpoint"
UNFINISHED = ".unfinished."


@HOOKS.register_module(name="CheckpointHook", force=True)
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, under its name for every config; it deletes nothing before what replaces it is there."""

    def before_train(self, runner: Runner) -> None:
        """Removes what an earlier process did not finish."""
        super().before_train(runner)
        if is_main_process() and Path(self.out_dir).is_dir():
            for path in Path(self.out_dir).glob(f"{UNFINISHED}*"):
                path.unlink(missing_ok=True)
        progress = runner.epoch if self.by_epoch else runner.iter
        loop: Any = runner.train_loop
        if (
            self.save_best
            and progress
            and runner.val_loop is not None
            and getattr(runner, "_resume", False)
            and progress >= loop.val_begin
            and progress % loop.val_interval == 0
        ):
            # Weights are saved before their iteration is validated; the training may have been stopped in between.
            runner.val_loop.run()
            runner.model.train()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            kept = [*self.keep_ckpt_ids, step]
            outdated = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)  # a deque of max_keep_ckpts, which drops the oldest
            # The file lists outdated ones, too: if the training is killed before it removes them, a resumed one will.
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        with atomic_path(Path(runner.work_dir, POINTER)) as temporary:
            temporary.write_text(self.last_ckpt)
        for old in map(self._path, outdated):
            self._remove(old)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        with _removals_later(self) as outdated:
            super()._save_best_checkpoint(runner, metrics)
        best = [getattr(self, "best_ckpt_path", None), *getattr(self, "best_ckpt_path_dict", {}).values()]
        for old in outdated:
            if old not in best:
                self._remove(old)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # deepspeed's checkpoints are folders
            self.file_backend.rmtree(path)


class _NotedRemovals:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any, removed: list[str]) -> None:
        self.backend, self.remove, self.rmtree = backend, removed.append, removed.append

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@contextlib.contextmanager
def _removals_later(hook: CheckpointHook) -> Iterator[list[str]]:
    backend = hook.file_backend
    removed: list[str] = []
    hook.file_backend = _NotedRemovals(backend, removed)
    try:
        yield removed
    finally:
        hook.file_backend = backend


@contextlib.contextmanager
def replaced_at_the_end(folder: str, name: str) -> Iterator[str]:
    """Yields a name to write to in ``folder``; what is there at the block's end becomes ``name``."""
    if "://" in folder:  # a store whose files appear whole by themselves
        yield name
        return
    temporary = f"{UNFINISHED}{name}"
    try:
        yield temporary
        if is_main_process():
            Path(folder, temporary).replace(Path(folder, name))
    finally:
        if is_main_process():
            Path(folder, temporary).unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a file of weights is complete: all that it names is in it, and agrees with its checksums."""
    try:
        read_checkpoint(path)
    except CodeError:
        return True  # complete, but it holds code: loading it says so
    except InputError:
        return False
    return True


def _named(folder: Path) -> str:
    pointer = folder / POINTER
    return pointer.read_text(errors="replace").strip() if pointer.is_file() else ""


def named_weights(folder: Path) -> Path | None:
    """The weights that ``last_checkpoint`` in a training's folder names, wherever that is now; None if not whole."""
    named = _named(folder)
    if named and "\0" not in named:
        for path in (folder / Path(named).name, Path(named)):  # the folder may have been moved, or copied
            if path.is_file() and is_whole(path):
                return path
    return None


def last_weights(folder: Path) -> Path | None:
    """The weights that a training in ``folder`` goes on from: those that ``last_checkpoint`` names, if they are whole.

    Otherwise the newest whole ``iter_N.pth`` or ``epoch_N.pth``, with a line that says so; None where there is none.

    Args:
        folder: a training's ``--work-dir``.
    """
    if found := named_weights(folder):
        return found
    pointer, named = folder / POINTER, _named(folder)
    others = [path for pattern in ("iter_*.pth", "epoch_*.pth") for path in folder.glob(pattern)]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = next(filter(is_whole, others), None)
    if pointer.exists() or others:
        what = f"names {Path(named).name}, which is missing or not whole" if named else "names no weights"
        print(
            f"{pointer}: {what}; "
            + (
                f"going on from {found}, the newest whole file"
                if found
                else "no whole file is there: starting from the beginning"
            ),
            flush=True,
        )
    return found


def check_finite(state: dict[str, Any], where: str) -> None:
    """Refuses to save weights that a diverged training has left behind.

    Raises:
        InputError: a weight is nan or infinite.
    """
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(
                f"{where}: weight {name} is not finite: the training diverged, and is not saved; lower "
                "the learning rate (‹cfg_options› optim_wrapper.optimizer.lr=...) and start again"
            )

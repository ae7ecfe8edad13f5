"""mmengine's Runner, whose trainings resume exactly, save whole files, and load no other model's weights unseen."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from common.errors import InputError
from common.files import atomic_path
from common.schema import one_line
from segmentation.reproducible import TrainingHook, number_draws
from segmentation.saving import check_finite, replaced_at_the_end, sync

_PROGRESS = ("optimizer", "param_name", "last_step", "verbose")  # of a schedule's arguments, those not from the config
_SHOWN = 3


class SegmentorRunner(Runner):
    """Trains; see the module."""

    testing = False

    def build_train_loop(self, loop: Any) -> Any:
        """The config's loop, with draws that can be taken up anywhere."""
        built = super().build_train_loop(loop)
        number_draws(built, self.seed)
        self.register_hook(TrainingHook())
        return built

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """As mmengine's; several processes may train on CPUs, too."""
        if self.distributed and get_device() == "cpu" and not is_model_wrapper(model):
            model = revert_sync_batchnorm(model)  # which needs GPUs
            given = {"find_unused_parameters": self.cfg.get("find_unused_parameters", False),
                     "broadcast_buffers": False, **(model_wrapper_cfg or {})}
            model_wrapper_cfg = {**given, "device_ids": None}
        return super().wrap_model(model_wrapper_cfg, model)

    def dump_config(self) -> None:
        """A training's resolved config goes beside its weights; a test leaves it as it is."""
        if self.testing or not is_main_process():
            return
        name = Path(self.cfg.filename).name if self.cfg.filename else "config.py"
        with atomic_path(Path(self.work_dir, name).with_suffix(".py")) as temporary:
            self.cfg.dump(str(temporary))

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """As mmengine's, which asks compilers and drivers for seconds, only if that is to be seen."""
        if any(handler.level <= logging.INFO for handler in self.logger.handlers):
            super()._log_env(env_cfg)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """As mmengine's; the file is whole or not there, and holds numbers."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        check_finite(model.state_dict(), f"--work-dir {self.work_dir}")
        with replaced_at_the_end(str(out_dir), filename) as name:
            super().save_checkpoint(out_dir, name, *args, **kwargs)
            if is_main_process() and (path := Path(out_dir, name)).is_file():
                sync(path)

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", strict: bool = False,
                        revise_keys: Any = ((r"^module\.", ""),)) -> dict[str, Any]:
        """Loads weights: all of them to test or resume; those that fit, to train on from others.

        Raises:
            InputError: the weights are another model's.
        """
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location)
        if not isinstance(checkpoint, dict):
            raise InputError(f"{filename}: holds no weights; name another file")
        if isinstance(checkpoint.get("meta"), dict):
            checkpoint["meta"].pop("config", None)  # mmengine would run this text
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        state = checkpoint.get("state_dict", checkpoint)
        if not isinstance(state, dict):
            raise InputError(f"{filename}: state_dict holds no weights by name; name another file")
        for pattern, replacement in revise_keys:
            state = {re.sub(pattern, replacement, str(key)): value for key, value in state.items()}
        state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        unfit = _unfit(model.state_dict(), state, optional="auxiliary_head." if self.testing else None)
        if unfit and (self.testing or self._resume):
            raise InputError(f"{filename}: weights of another model than the config's: {_some(unfit)}")
        if unfit:
            fitting = {key: value for key, value in state.items()
                       if key in model.state_dict() and value.shape == model.state_dict()[key].shape}
            if not fitting:
                raise InputError(f"{filename}: none of its weights fits the config's model: {_some(unfit)}")
            if is_main_process():
                print(f"{filename}: {len(fitting)} weights taken; not taken, and trained from their start: "
                      f"{'; '.join(unfit)}", flush=True)
            state = fitting
        model.load_state_dict(state, strict=False)
        self._has_loaded = True
        return checkpoint

    def resume(self, filename: str, resume_optimizer: bool = True, resume_param_scheduler: bool = True,
               map_location: str | Callable[..., Any] = "default") -> None:
        """As mmengine's; the schedule is the config's, at the place where the training stopped.

        Raises:
            InputError: the file is no training's, or was trained with another optimizer, rate or seed.
        """
        wanted = [{key: value for key, value in group.items() if key != "params"}
                  for group in getattr(self.optim_wrapper, "param_groups", [])]
        configured = [_arguments(scheduler) for scheduler in self._schedules()]
        try:
            super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{filename}: no checkpoint that this training can go on from ({one_line(error)}); to "
                             "take its weights alone, use --load-from without --resume") from error
        _check_same(filename, wanted, getattr(self.optim_wrapper, "param_groups", []))
        for scheduler, arguments in zip(self._schedules(), configured, strict=True):
            vars(scheduler).update(arguments)

    def _schedules(self) -> list[Any]:
        schedulers = self.param_schedulers
        if isinstance(schedulers, dict):
            return [one for several in schedulers.values() for one in several]
        return list(schedulers or [])


class TestRunner(SegmentorRunner):
    """Tests, and replaces nothing of a training."""

    testing = True


def _arguments(scheduler: Any) -> dict[str, Any]:
    """What the config says of a schedule, and how far it reaches; not how far it has come."""
    names = {name for kind in type(scheduler).__mro__ if "__init__" in vars(kind)
             for name in inspect.signature(kind).parameters} | {"total_iters"}
    return {key: value for key, value in vars(scheduler).items() if key in names and key not in _PROGRESS}


def _check_same(filename: str, wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    for new, old in zip(wanted, found, strict=False):
        for key in new.keys() & old.keys():
            if f"initial_{key}" not in new and new[key] != old[key]:  # scheduled values are compared at their start
                name = key.removeprefix("initial_")
                raise InputError(f"{filename}: was trained with {name} {old[key]}, the config now says {new[key]}; "
                                 f"--resume goes on as it began: leave {name} as it was, or take the weights alone "
                                 "(--load-from without --resume)")


def _unfit(expected: dict[str, Any], given: dict[str, Any], optional: str | None) -> list[str]:
    """What does not fit, in words: names, or shapes."""

    def counts(key: str) -> bool:
        return not key.startswith(("data_preprocessor.", *([optional] if optional else []))) \
            and not key.endswith("num_batches_tracked")

    lines = [f"{key} is missing" for key in expected if key not in given and counts(key)]
    lines += [f"{key} is unknown" for key in given if key not in expected and counts(key)]
    return lines + [f"{key} is {tuple(value.shape)}, the config's {tuple(expected[key].shape)}"
                    for key, value in given.items() if key in expected and value.shape != expected[key].shape]


def _some(lines: list[str]) -> str:
    return "; ".join(lines[:_SHOWN]) + (f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")


def join_processes(launcher: str) -> None:
    """Checks what a launcher says, and joins its processes where there is no GPU (mmengine assumes one).

    Raises:
        InputError: the command was not started by the launcher, or has no GPU of its own.
    """
    if launcher == "none":
        return
    needed = {"pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
              "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST")}[launcher]
    if missing := [name for name in needed if not os.environ.get(name)]:
        how = "torchrun --nproc-per-node N -m scripts.segmentor ..." if launcher == "pytorch" else "srun"
        raise InputError(f"--launcher {launcher}: {', '.join(missing)} not set; start the command with {how}")
    for name in needed[:3]:
        if name.isupper() and name != "SLURM_NODELIST" and not os.environ[name].isdecimal():
            raise InputError(f"--launcher {launcher}: {name} is {one_line(os.environ[name], 40)}, no number")
    if get_device() == "cpu":
        if launcher == "slurm":
            raise InputError("--launcher slurm: no GPU here; on CPUs, start with torchrun and --launcher pytorch")
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
    elif torch.cuda.is_available() and int(os.environ.get("LOCAL_RANK", 0)) >= torch.cuda.device_count():
        raise InputError(f"--launcher {launcher}: process {os.environ['LOCAL_RANK']} of this machine has no GPU; there "
                         f"are {torch.cuda.device_count()}: start as many processes")

"""A command's processes: which of them this is, before Lightning's trainer has been asked, and who starts them."""

from __future__ import annotations

import os
from typing import Any

from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.utilities import rank_zero_only

from common.command import note
from common.devices import count_devices, parse_devices
from common.errors import InputError
from common.processes import end_with_parent
from common.schema import one_line


def first_process() -> bool:
    """Whether this is the first process, which speaks for all that one launcher started."""
    return getattr(rank_zero_only, "rank", 0) == 0


def started_by_first() -> bool:
    """Whether Lightning started this process, for a further device of the command's; not torchrun or SLURM."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 and "TORCHELASTIC_RUN_ID" not in os.environ


def take_place(gpus: str, num_nodes: int) -> None:
    """To be called by every process of a command, before its work.

    Those that Lightning started end with the first: it ends them on Ctrl-C alone, and after any other error of the
    first (too little memory, a full disk) they would go on, or wait for it, and hold their GPUs.

    A command with one device is the first, and only, of its processes: also where SLURM numbers it, as one of several
    commands that a job runs at a time.

    Args:
        gpus: the devices, see ``common.devices.parse_devices``.
        num_nodes: machines.
    """
    if started_by_first():
        end_with_parent()
    alone = num_nodes == 1 and count_devices(parse_devices(gpus)["devices"]) == 1
    if alone and not {"RANK", "LOCAL_RANK"} & set(os.environ):
        if first_process() and (tasks := _slurm_tasks()) > 1:
            note(
                f"SLURM runs {tasks} tasks, each by itself with one device; for one work on the devices of all, each "
                "task has to see those of its machine (--gpus-per-node)"
            )
        rank_zero_only.rank = 0  # type: ignore[attr-defined]


def _slurm_tasks() -> int:
    """Processes that SLURM started together; 1 in a job's script, 0 where there is no job."""
    if not SLURMEnvironment.detect():
        return 0
    return int(os.environ["SLURM_NTASKS"]) if "SLURM_STEP_ID" in os.environ else 1  # srun sets it


def launcher(devices: int, num_nodes: int) -> list[Any]:
    """Who starts a command's processes, as plugins of Lightning's trainer (``ClusterEnvironment``); none: as it finds.

    Lightning takes SLURM for that wherever it sees SLURM's variables: of a job's single task with four GPUs it would
    use one, and say nothing; in a job's script it would wait for tasks that nobody starts. And at SIGUSR1 it would save
    amid a step, and requeue the job, beside what the job's script does.

    Args:
        devices: of each machine.
        num_nodes: machines.

    Raises:
        InputError: SLURM started another number of processes.
    """
    if TorchElasticEnvironment.detect() or not (tasks := _slurm_tasks()):
        return []
    wanted = devices * num_nodes
    if num_nodes == 1 and 1 in (wanted, tasks):
        return [LightningEnvironment()]
    if tasks != wanted:
        raise InputError(
            f"‹gpus›, ‹num_nodes›: {devices} devices on each of {num_nodes} machines, and SLURM runs {tasks} tasks; it "
            f"takes one a device (--nodes={num_nodes} --ntasks-per-node={devices}), or on one machine one task in all"
        )
    try:
        return [SLURMEnvironment(auto_requeue=False)]
    except RuntimeError as error:
        raise InputError(f"‹num_nodes› {num_nodes}: {one_line(error)}") from error

"""Where things are computed, and what ends with what, on machines that tests do not have."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from cldm.diffusers_export.remote.tisynth_vae import BlockAutoencoder
from cldm.synthesis.judging import mask_scores
from common.errors import InputError
from ldm.training import ranks
from ldm.training.exit_code import exit_code
from ldm.training.stop_on_signal import StopOnSignal


def test_a_judge_looks_where_the_model_paints():
    seen = []

    class Judge:
        def look(self, images):
            seen.append(images.device.type)
            return torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)

        def labels(self, mask, size):
            return np.zeros(size, np.uint8)

    image = np.zeros((1, 4, 4, 3), np.uint8)
    assert mask_scores(Judge(), image, ["a.png"], torch.device("meta")) == [1.0]
    assert mask_scores(Judge(), image, ["a.png"]) == [1.0] and seen == ["meta", "cpu"]


@pytest.mark.parametrize(
    ("environment", "ends"),
    [({}, 0), ({"LOCAL_RANK": "0"}, 0), ({"LOCAL_RANK": "2"}, 1), ({"LOCAL_RANK": "2", "TORCHELASTIC_RUN_ID": "a"}, 0)],
)
def test_processes_that_lightning_started_end_with_the_first(monkeypatch, environment, ends):
    called = []
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "end_with_parent", lambda: called.append(1))
    ranks.take_place("cpu:2", 1)
    assert len(called) == ends


def test_the_first_process_alone_gives_the_code_of_a_stop(monkeypatch):
    """Lightning kills it when another ends with one."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert exit_code(lambda: signal.SIGTERM) == 143
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert exit_code(lambda: signal.SIGTERM) == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")  # torchrun's are all asked
    assert exit_code(lambda: signal.SIGTERM) == 143


def test_sigusr1_is_taken_for_sigterm():
    stop = StopOnSignal(None)
    stop.on_train_start(None, None)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        stop.teardown(None, None, "fit")
    assert stop._received == signal.SIGTERM and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.fixture
def slurm(monkeypatch):
    """A task of a SLURM job, the second of as many as are given; 0: the job's script."""
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def task(tasks, a_machine, machines=1):
        said = {
            "NTASKS": tasks or a_machine,
            "NTASKS_PER_NODE": a_machine,
            "NNODES": machines,
            "LOCALID": min(tasks, 1),
        }
        said |= {"PROCID": min(tasks, 1), "NODEID": 0, "JOB_ID": 4711, "JOB_NAME": "job"}
        for name, value in (said | ({"STEP_ID": 0} if tasks else {})).items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        monkeypatch.setattr(rank_zero_only, "rank", min(tasks, 1))

    return task


@pytest.mark.parametrize(
    ("tasks", "devices", "machines", "starter", "world"),
    [
        (1, 2, 1, "LightningEnvironment", 2),  # one task with two devices: Lightning starts the other process
        (0, 2, 1, "LightningEnvironment", 2),  # in the job's script, of a job that could start two tasks
        (2, 2, 1, "SLURMEnvironment", 2),
        (8, 4, 2, "SLURMEnvironment", 8),
        (4, 1, 1, "LightningEnvironment", 1),  # four commands, each by itself
    ],
)
def test_a_task_of_slurm_uses_the_devices_that_it_names(slurm, tasks, devices, machines, starter, world):
    slurm(tasks, max(tasks // machines, devices), machines)
    plugins = ranks.launcher(devices, machines)
    several = {"strategy": DDPStrategy()} if devices > 1 else {}
    silent = {"logger": False, "enable_checkpointing": False, "num_nodes": machines}
    trainer = pl.Trainer(accelerator="cpu", devices=devices, plugins=plugins, **several, **silent)
    assert (type(plugins[0]).__name__, trainer.world_size) == (starter, world)
    assert not getattr(plugins[0], "auto_requeue", False)  # the job's script requeues, once all is saved


def test_other_tasks_than_devices_are_refused(slurm):
    slurm(8, 4, 2)
    with pytest.raises(InputError, match="1 devices on each of 2 machines, and SLURM runs 8 tasks"):
        ranks.launcher(1, 2)


def test_a_command_with_one_device_is_not_a_part_of_another(slurm, cli, command, tmp_path):
    """Several commands at a time in one job, each of a task: the second is as much its own master as the first."""
    slurm(4, 4)
    assert "8 to make" in cli("inference", *command(tmp_path, "--dry-run"))
    slurm(4, 4)
    ranks.take_place("cpu:4", 1)
    assert not ranks.first_process()


def test_a_precision_that_the_cpu_would_replace_is_refused(cli, command, tmp_path):
    told = cli.refused("inference", *command(tmp_path, "--precision", "16-mixed"))
    assert "--precision 16-mixed: the CPU does not have it" in told


def test_offloaded_weights_come_for_encoding_and_decoding():
    pytest.importorskip("accelerate")
    called = []
    stage = BlockAutoencoder(3, 12, 2)
    stage._hf_hook = SimpleNamespace(pre_forward=lambda module: called.append(module))
    stage.decode(stage.encode(torch.zeros(1, 3, 4, 4)).latent_dist.mode())
    assert called == [stage, stage]

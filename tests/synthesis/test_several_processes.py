"""Synthesis by several processes: none does another's work, none is left out, and they end together."""

import os
import shutil
import signal
import time

import pytest

from cldm.synthesis import run
from tests.children import Command, in_processes, run_command
from tests.synthesis.conftest import close, images, records


def test_two_processes_share_the_work(made, command, tmp_path):
    out = tmp_path / "out"
    assert Command(tmp_path / "log", "inference", *command(out, "--gpus", "cpu:2", "--batch-size", "2")).wait() == 0
    assert all(close(images(out)[name], picture) for name, picture in images(made).items())
    assert [r["name"] for r in records(out)] == sorted(r["name"] for r in records(made))
    assert {p.name for p in out.glob("*.jsonl")} == {"samples.jsonl"}


def test_two_commands_fill_one_folder_at_once(made, command, tmp_path):
    """As the tasks of a cluster's array job do, each with a seed of its own."""
    out = tmp_path / "out"
    both = [
        Command(tmp_path / str(i), "inference", *command(out, *more))
        for i, more in enumerate(([], ["--seed", "6", "--batch-size", "3"]))
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert all(close(images(out)[name], picture) for name, picture in images(made).items())
    assert [r["name"] for r in records(out)] == sorted(p.removesuffix(".png") for p in images(out))
    assert len(records(out)) == 16


def test_a_process_takes_the_first_ones_plan(cli, made, command, tmp_path, monkeypatch):
    """However late it looks at the folder: it finds images there that the first one still counts as missing."""
    from pytorch_lightning.utilities import rank_zero_only

    shutil.copytree(made, tmp_path / "out")
    monkeypatch.setattr("cldm.synthesis.folder.missing_images", lambda *_: pytest.fail("a second plan"))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "to make" not in cli("inference", *command(tmp_path / "out"))


def test_fewer_images_than_processes(made, command, tmp_path):
    arguments = command(tmp_path / "out", "--gpus", "cpu:2", "--only", "train_0003_seed_5")
    assert in_processes(2, lambda: run_command("inference", *arguments)) == [0, 0]
    assert close(images(tmp_path / "out")["train_0003_seed_5.png"], images(made)["train_0003_seed_5.png"])
    assert len(records(tmp_path / "out")) == 1


def test_a_process_that_was_stopped_waits_for_the_others(command, tmp_path, monkeypatch):
    """One that ends with a code has Lightning or srun kill the others, amid the images at hand."""
    out, paint = tmp_path / "out", run.painted

    def signalled(*words):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1 - int(os.environ["RANK"]))
        return paint(*words)

    def work():
        try:
            run_command("inference", *command(out, "--gpus", "cpu:2", "--batch-size", "1"))
        finally:
            assert len(images(out)) == 2, "the other process's image is not there yet"

    monkeypatch.setattr(run, "painted", signalled)
    assert in_processes(2, work) == [143, 143]
    assert len(records(out)) == 2 and {p.name for p in out.glob("*.jsonl")} == {"samples.jsonl"}


def test_few_images_are_shared_by_all_devices(scenes):
    from types import SimpleNamespace

    from cldm.synthesis.run import Job, Jobs

    items = SimpleNamespace(size=(32, 32))
    for count, world_size, sizes in ((8, 2, [4, 4]), (3, 2, [2, 1]), (0, 2, []), (9, 1, [8, 1])):
        jobs = Jobs(items, [Job(i, 0, str(i)) for i in range(count)], 8, 0)
        strategy = SimpleNamespace(broadcast=lambda given: given)
        shares = []
        for rank in range(world_size):
            jobs.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)
            shares += list(jobs.predict_dataloader().batch_sampler)
        assert [len(batch) for batch in shares] == sizes
        assert sorted(index for batch in shares for index in batch) == list(range(count))

"""Resuming, saving and loading of segmentors: exact, whole, and of the right model."""

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from common import command as command_line
from common.files import only_writer
from scripts import segmentor
from segmentation.saving import SafeCheckpointHook, last_weights
from tests.children import in_child

ALL = ("--cfg-options", "default_hooks.checkpoint.max_keep_ckpts=-1", "model.decode_head.dropout_ratio=0.5")


def state(path):
    return torch.load(path, weights_only=False)


def assert_equal(first, second):
    one, other = state(first), state(second)
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])
    momentum = [content["optimizer"]["state"] for content in (one, other)]
    assert str(momentum[0]) == str(momentum[1])


def by_epochs(chain):
    text = chain.config.read_text().replace(
        'train_cfg = dict(type="IterBasedTrainLoop", max_iters=2)',
        'train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)',
    )
    text = text.replace('sampler=dict(type="InfiniteSampler")', 'sampler=dict(type="DefaultSampler", shuffle=True)')
    chain.config.write_text(text.replace("end=2", "end=4"))


@pytest.mark.parametrize(
    ("loop", "workers", "stop"), [("iterations", 2, 2), ("finite sampler", 0, 3), ("epochs", 0, 3), ("bf16", 0, 2)]
)
def test_a_resumed_training_is_an_unbroken_one(chain, cli, loop, workers, stop):
    length = () if loop == "epochs" else ("--max-iters", 4)
    length = (*length, "--precision", "bf16") if loop == "bf16" else length
    if loop == "epochs":
        by_epochs(chain)
    if loop == "finite sampler":  # 3 images in batches of 2: it begins anew within the training
        chain.config.write_text(chain.config.read_text().replace("InfiniteSampler", "DefaultSampler"))
    options = [
        chain.config,
        *length,
        *ALL,
        "optim_wrapper.optimizer.momentum=0.9",
        f"train_dataloader.num_workers={workers}",
    ]
    whole = chain.root / "whole"
    cli("segmentor", "train", *options, "--work-dir", whole, "--seed", 5)
    broken = chain.root / "broken"
    broken.mkdir()
    shutil.copy(whole / f"iter_{stop}.pth", broken)
    (broken / "last_checkpoint").write_text("elsewhere/iter_9.pth")
    assert "iter_9.pth, which is missing" in cli("segmentor", "train", *options, "--work-dir", broken, "--resume")
    assert_equal(whole / "iter_4.pth", broken / "iter_4.pth")


def test_augmentation_does_not_depend_on_data_workers(chain, cli):
    for workers in (0, 1):
        cli(
            "segmentor",
            "train",
            chain.config,
            "--work-dir",
            chain.root / str(workers),
            *ALL,
            f"train_dataloader.num_workers={workers}",
        )
    assert_equal(chain.root / "0/iter_2.pth", chain.root / "1/iter_2.pth")


def test_a_kill_at_any_moment_of_saving_leaves_weights(chain, cli, monkeypatch):
    work = chain.root / "work"
    argv = ["train", str(chain.config), "--work-dir", str(work), "--max-iters", "3"]
    events, deadline = [], 0

    def step(name, original):
        def call(*args, **kwargs):
            events.append(name)
            if len(events) == deadline:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "save", step("write", torch.save))
    monkeypatch.setattr(Path, "replace", step("replace", Path.replace))
    monkeypatch.setattr(SafeCheckpointHook, "_remove", step("remove", SafeCheckpointHook._remove))
    segmentor.main(argv)  # in this process, for the names of all steps
    first, last = events.index("remove"), len(events)
    for deadline in range(first + 2, min(first + 6, last)):  # noqa: B007 (the third save: written, renamed, tidied up)
        shutil.rmtree(work)
        events.clear()
        assert in_child(lambda: segmentor.main(argv)) == -signal.SIGKILL
        assert state(last_weights(work))["state_dict"]
    deadline = 0
    cli("segmentor", "train", *argv[1:], "--resume")
    assert [path.name for path in work.glob("*.pth")] == ["iter_3.pth"] and not list(work.glob(".unfinished*"))


def test_best_weights_go_after_their_successors_are_there(chain, cli, monkeypatch):
    text = chain.config.read_text().replace("interval=1,", "interval=1, save_best='mIoU',")
    chain.config.write_text(
        text.replace("max_iters=2", "max_iters=4, val_interval=1")
        + ("val_dataloader = test_dataloader\nval_evaluator = test_evaluator\nval_cfg = dict(type='ValLoop')\n")
    )
    removed = []

    def remove(self, path):
        removed.append(path)
        assert len(list(Path(path).parent.glob(f"{Path(path).name.partition('_')[0]}_*.pth"))) == 2
        Path(path).unlink()

    monkeypatch.setattr(SafeCheckpointHook, "_remove", remove)
    monkeypatch.setattr(SafeCheckpointHook, "rule_map", {"greater": lambda now, before: True})
    cli("segmentor", "train", chain.config, "--work-dir", chain.root / "work")
    assert any("best_" in Path(path).name for path in removed)
    assert len(list((chain.root / "work").glob("best_*.pth"))) == 1


def test_a_folder_without_whole_weights_starts_from_the_beginning(chain, cli):
    work = chain.root / "work"
    work.mkdir()
    (work / "iter_1.pth").write_bytes(b"PK\x03\x04 cut")
    (work / "last_checkpoint").write_text("")
    said = cli("segmentor", "train", chain.config, "--work-dir", work, "--resume")
    assert "no whole file is there: starting from the beginning" in said and (work / "iter_2.pth").is_file()


def test_a_full_disk_leaves_the_old_weights(chain, capfd):
    work, big = (
        chain.root / "work",
        ["--cfg-options", "model.decode_head.channels=1500", "model.decode_head.num_convs=1"],
    )
    argv = ["train", str(chain.config), "--work-dir", str(work), "--max-iters", "1", *big]
    command_line_exit = in_child(lambda: command_line.run(lambda: segmentor.main(argv)))
    assert command_line_exit == 0
    before = (work / "iter_1.pth").read_bytes()

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
        command_line.run(lambda: segmentor.main([*argv[: -len(big) - 1], "3", *big, "--resume"]))

    capfd.readouterr()
    assert in_child(full) == 2
    errors = capfd.readouterr().err
    assert os.strerror(errno.EFBIG) in errors.splitlines()[-1] and "Traceback" not in errors
    assert (work / "iter_1.pth").read_bytes() == before and last_weights(work) == work / "iter_1.pth"
    assert not list(work.glob(".unfinished*"))


def test_one_training_a_folder(chain, cli):
    with only_writer(chain.root / "work", "--work-dir"):
        error = cli.refused("segmentor", "train", chain.config, "--work-dir", chain.root / "work")
    assert f"process {os.getpid()}" in error and "is writing there" in error
    assert not list((chain.root / "work").glob("*.py"))


def test_the_given_seed_wins_and_a_resumed_one_stays(chain, cli):
    chain.config.write_text(chain.config.read_text() + "randomness = dict(seed=7)\n")
    work = chain.root / "work"
    runs = {
        seed: [chain.root / f"seed_{seed}", *(["--seed", seed] if seed is not None else [])] for seed in (1, 2, None)
    }
    for folder, *option in runs.values():
        cli("segmentor", "train", chain.config, "--work-dir", folder, *option)
    seeds = {seed: state(folder / "iter_2.pth")["meta"]["seed"] for seed, (folder, *_) in runs.items()}
    assert seeds == {1: 1, 2: 2, None: 7}
    first, second = (state(chain.root / f"seed_{seed}/iter_2.pth")["state_dict"] for seed in (1, 2))
    assert any(not torch.equal(first[key], second[key]) for key in first)
    shutil.copytree(chain.root / "seed_2", work)
    error = cli.refused("segmentor", "train", chain.config, "--work-dir", work, "--resume", "--seed", 3)
    assert "was trained with seed 2" in error
    cli("segmentor", "train", chain.config, "--work-dir", work, "--resume", "--max-iters", 3)
    assert state(work / "iter_3.pth")["meta"]["seed"] == 2


def test_what_a_resumed_training_cannot_use_is_refused(chain, cli):
    work = chain.root / "work"
    text = chain.config.read_text().replace("num_convs=0", "num_convs=1")
    chain.config.write_text(text)
    cli("segmentor", "train", chain.config, "--work-dir", work, "--max-iters", 1)
    before = {path.name: path.read_bytes() for path in work.iterdir() if path.is_file()}
    for option, message in (
        ("optim_wrapper.optimizer.lr=0.2", "was trained with lr 0.1, the config now says 0.2"),
        ("optim_wrapper.optimizer.weight_decay=0.5", "was trained with weight_decay 0"),
        ("model.decode_head.channels=4", "weights of another model than the config's"),
    ):
        error = cli.refused(
            "segmentor",
            "train",
            chain.config,
            "--work-dir",
            work,
            "--max-iters",
            2,
            "--resume",
            "--cfg-options",
            option,
        )
        assert message in error
    assert before == {path.name: path.read_bytes() for path in work.iterdir() if path.is_file()}


def test_what_is_no_training_cannot_be_resumed(chain, cli):
    cli("segmentor", "train", chain.config, "--work-dir", chain.root / "work", "--max-iters", 1)
    good = state(chain.root / "work/iter_1.pth")
    for damaged in (
        {"state_dict": good["state_dict"]},
        {**good, "meta": "x"},
        {**good, "optimizer": {"state": {}}},
        {**good, "state_dict": 5},
        {**good, "meta": {"iter": "x", "epoch": 0}},
    ):
        torch.save(damaged, chain.root / "damaged.pth")
        error = cli.refused(
            "segmentor",
            "train",
            chain.config,
            "--work-dir",
            chain.root / "other",
            "--max-iters",
            2,
            "--resume",
            "--load-from",
            chain.root / "damaged.pth",
        )
        assert "damaged.pth" in error and not (chain.root / "other").exists()


def test_another_models_weights_are_not_tested_but_trained_on_from(chain, cli):
    weights = torch.load(chain.weights)
    weights["state_dict"]["decode_head.conv_seg.weight"] = torch.zeros(9, 3, 1, 1)
    torch.save(weights, chain.root / "other.pth")
    error = cli.refused(
        "segmentor", "test", chain.config, "--load-from", chain.root / "other.pth", "--work-dir", chain.root / "work"
    )
    assert "weights of another model than the config's: decode_head.conv_seg.weight is (9, 3, 1, 1)" in error
    assert not (chain.root / "work").exists()
    said = cli(
        "segmentor", "train", chain.config, "--load-from", chain.root / "other.pth", "--work-dir", chain.root / "work"
    )
    assert "1 weights taken; not taken, and trained from their start: decode_head.conv_seg.weight is (9, 3" in said
    torch.save({"state_dict": {"x": torch.zeros(2)}}, chain.root / "foreign.pth")
    error = cli.refused(
        "segmentor", "train", chain.config, "--load-from", chain.root / "foreign.pth", "--work-dir", chain.root / "new"
    )
    assert "none of its weights fits" in error and not (chain.root / "new").exists()


def test_a_test_leaves_the_trainings_config_and_logs(chain, cli):
    work = chain.root / "work"
    cli("segmentor", "train", chain.config, "--work-dir", work)
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert work / "config.py" in before
    cli(
        "segmentor",
        "test",
        work / "config.py",
        "--load-from",
        work / "iter_2.pth",
        "--split",
        "train",
        "--work-dir",
        work,
    )
    assert all(path.read_bytes() == content for path, content in before.items()) and (work / "metrics.json").is_file()


def test_a_training_whose_loss_is_no_number_keeps_the_last_good_weights(chain, cli):
    error = cli.refused(
        "segmentor",
        "train",
        chain.config,
        "--work-dir",
        chain.root / "bad",
        "--max-iters",
        5,
        "--cfg-options",
        "optim_wrapper.optimizer.lr=1e38",
        "param_scheduler=None",
    )
    assert "the loss is " in error and " at iteration 2" in error and "lower the learning rate" in error
    assert torch.isfinite(state(last_weights(chain.root / "bad"))["state_dict"]["decode_head.conv_seg.weight"]).all()

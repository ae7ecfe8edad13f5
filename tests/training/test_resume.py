"""``last.ckpt`` is the last, and a resumed run is the unbroken one; what cannot be resumed leaves the run as it was."""

import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from cldm.control_ldm import ControlLDM
from cldm.data.datamodule import DataModuleFromConfig
from common.errors import InputError
from common.files import only_writer
from ldm.training.stop_on_signal import ProgressBar, StopOnSignal
from tests.training.test_training import EMA, STEPS, options, train_in, weights


@pytest.fixture(autouse=True, scope="module")
def quick_losses():
    """These tests ask what is written and when, not what is learned: a loss of one weight and the items' seeds."""

    def losses(self, batch):
        weight = self.model.diffusion_model.out[-1].bias
        return (weight.mean() - batch["seed"].to(weight) % 7) ** 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ControlLDM, "batch_losses", losses)
        yield


def content(run, name="last.ckpt"):
    return torch.load(run / "checkpoints" / name, weights_only=True)


def kept(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def files(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def validations(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("val/loss")]


@pytest.fixture(scope="module")
def begun(scenes, tmp_path_factory, quick_losses):
    """A run of two steps with a running average; tests copy it."""
    return train_in(tmp_path_factory.mktemp("logs"), scenes, EMA, STEPS.format(2))


@pytest.fixture
def run(begun, tmp_path):
    return Path(shutil.copytree(begun, tmp_path / "run"))


# ---- last.ckpt


@pytest.mark.parametrize(
    "settings",
    [["lightning.trainer.check_val_every_n_epoch=2"], ["lightning.modelcheckpoint.params.mode=max"]],
    ids=["validation every second epoch", "validation loss away from the best"],
)
def test_the_last_checkpoint_is_the_last_step(cli, scenes, tmp_path, settings):
    # 8 items, batch 2: an epoch is 4 steps; Lightning's would hold step 4 or none
    val = ["lightning.trainer.check_val_every_n_epoch=1", "model.params.warmup_steps=0"]
    out = cli("train", *options(scenes, tmp_path, "run", EMA, *val, *settings, STEPS.format(6)))
    last = content(tmp_path / "run")
    assert "trained 6 steps" in out and f"{tmp_path / 'run/checkpoints/last.ckpt'} holds step 6" in out
    assert last["global_step"] == 6 and last["state_dict"]["model_ema.num_updates"] == 6
    assert {int(state["step"]) for state in last["optimizer_states"][0]["state"].values() if state} == {6}


def test_a_time_limit_ends_with_the_last_step(cli, scenes, tmp_path):
    out = cli("train", *options(scenes, tmp_path, "run", "lightning.trainer.max_time=00:00:00:01", STEPS.format(-1)))
    done = int(re.search(r"trained (\d+) steps", out)[1])
    assert content(tmp_path / "run")["global_step"] == done > 0


@pytest.mark.parametrize(("settings", "holds"), [(["--save-every", "3"], [3, 4, 6, 8]), ([], [4, 8])])
def test_a_kill_finds_it_whole_at_every_epoch_and_every_so_many_steps(
    cli, scenes, tmp_path, monkeypatch, settings, holds
):
    found = []

    def at_step(self, trainer, *_):
        last = tmp_path / "run/checkpoints/last.ckpt"
        if last.exists():
            found.append(torch.load(last, weights_only=True)["global_step"])

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", at_step, raising=False)
    cli("train", *options(scenes, tmp_path, "run", *settings, STEPS.format(9)))
    assert sorted(set(found)) == holds and content(tmp_path / "run")["global_step"] == 9
    assert OmegaConf.load(tmp_path / "run/config.yaml").lightning.get("save_every") == (3 if settings else None)


def test_after_a_failure_it_holds_the_latest_step(cli, scenes, tmp_path, monkeypatch):
    step = ControlLDM.training_step

    def fails(self, batch, batch_idx):
        if self.global_step == 2:
            raise RuntimeError("a failure")
        return step(self, batch, batch_idx)

    whole = [EMA, STEPS.format(6)]
    cli("train", *options(scenes, tmp_path, "whole", *whole))
    monkeypatch.setattr(ControlLDM, "training_step", fails)
    with pytest.raises(RuntimeError, match="a failure"):
        cli("train", *options(scenes, tmp_path, "part", *whole))
    monkeypatch.undo()
    assert content(tmp_path / "part")["global_step"] == 2
    cli("train", "--resume", tmp_path / "part", "--gpus", "cpu")
    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert [k for k in whole if not torch.equal(whole[k], part[k])] == []


def test_a_loss_that_is_no_number_leaves_what_was_before(cli, scenes, tmp_path):
    cli("train", *options(scenes, tmp_path, "run", STEPS.format(2)))
    out = cli("train", "-r", tmp_path / "run", "--gpus", "cpu", "base_learning_rate=1e30", STEPS.format(6), code=1)
    assert "base_learning_rate" in out and "last.ckpt holds step 2" in out
    assert content(tmp_path / "run")["global_step"] == 2


# ---- values given on resume


def test_a_rate_given_on_resume_is_used(cli, run):
    before = weights(run)
    out = cli(
        "train",
        "-r",
        run,
        "--gpus",
        "cpu",
        STEPS.format(4),
        "base_learning_rate=0",
        "model.params.weight_decay=0.5",
        "model.params.warmup_steps=7",
    )
    assert "changed: base_learning_rate: 0.001 -> 0" in out
    last = content(run)
    assert last["global_step"] == 4 and last["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.5
    averages = "model_ema."
    assert all(torch.equal(before[k], value) for k, value in last["state_dict"].items() if not k.startswith(averages))
    cli("train", "-r", run, "--gpus", "cpu", STEPS.format(5), "base_learning_rate=1", "data.params.batch_size=4")
    group = content(run)["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == pytest.approx(4 * 6 / 7) and group["initial_lr"] == 4  # after step 5, of warm-up over 7


def test_the_bar_counts_the_whole_epoch_and_times_what_this_run_does(cli, run, monkeypatch):
    shown = {}
    monkeypatch.setattr(ProgressBar, "on_train_end", lambda bar, *_: shown.update(bar.train_progress_bar.format_dict))
    for steps, initial, done, total in ((3, 2, 3, 3), (6, 0, 2, 2)):  # an epoch has 4 steps; begun after 2, and after 3
        cli("train", "-r", run, "--gpus", "cpu", STEPS.format(steps), "lightning.trainer.enable_progress_bar=true")
        assert (shown["initial"], shown["n"], shown["total"]) == (initial, done, total)


def test_a_rate_that_was_not_scaled_stays_so(cli, scenes, tmp_path):
    cli("train", *options(scenes, tmp_path, "run", "--scale-lr", "false", STEPS.format(1)))
    cli("train", "-r", tmp_path / "run", "--gpus", "cpu", STEPS.format(2))
    assert content(tmp_path / "run")["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("lightning.trainer.devices=2", "--gpus"),
        ("lightning.trainer.accelerator=gpu", "--gpus"),
        ("lightning.trainer.num_nodes=2", "--num-nodes"),
        ("model.params.learning_rate=1e-5", "base_learning_rate"),
        ("data.params.train.params.hint_encoding=index", "would not be used, palette would be"),
    ],
)
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
def test_a_setting_that_an_option_decides_is_refused(cli, scenes, tmp_path, begun, setting, says, resumed):
    start = ["-r", begun, "--gpus", "cpu"] if resumed else options(scenes, tmp_path, "run", EMA)
    assert says in cli.refused("train", *start, "--dry-run", setting)


def test_a_file_that_names_what_an_option_decides_is_told(cli, scenes, tmp_path):
    (tmp_path / "devices.yaml").write_text("lightning: {trainer: {devices: 4}}")
    out = cli("train", *options(scenes, tmp_path, "run", "--dry-run", "--base", tmp_path / "devices.yaml"))
    assert "lightning.trainer.devices: 4 of the configuration's files is not used, but 1; it comes from --gpus" in out


def test_the_seed_given_wins(cli, scenes, tmp_path):
    out = cli("train", *options(scenes, tmp_path, "run", "--dry-run", "data.params.seed=4", "--seed", "5")[:-2])
    assert "\n    seed: 4\n" in out
    assert "\n    seed: 5\n" in cli("train", *options(scenes, tmp_path, "run", "--dry-run", "--seed", "5"))


# ---- what cannot be resumed


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def _without(*keys):
    def change(path):
        held = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in held.items() if key not in keys}, path)

    return change


def _in_8_bit(path):
    held = torch.load(path, weights_only=True)
    for state in held["optimizer_states"][0]["state"].values():
        state |= {"state1": state.pop("exp_avg"), "state2": state.pop("exp_avg_sq")}  # bitsandbytes' names
    torch.save(held, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_in_8_bit, "has the state of another optimizer than adamw"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "cut off or damaged"),
        (_flip, "damaged"),
        (lambda path: path.write_text("no checkpoint"), "no checkpoint"),
        (_without("optimizer_states"), "it lacks optimizer_states); take --pretrain-path for weights alone"),
        (_without("loops"), "it lacks loops"),
        (lambda path: torch.save(torch.load(path, weights_only=True)["state_dict"], path), "--pretrain-path"),
        (lambda path: torch.save([1, 2], path), "no checkpoint of a training"),
        (lambda path: path.unlink(), "there is no"),
    ],
    ids=["8 bit", "empty", "cut", "flipped", "text", "no optimizer", "no loops", "weights alone", "a list", "none"],
)
def test_a_damaged_checkpoint_is_one_line(cli, run, damage, says):
    damage(run / "checkpoints" / "last.ckpt")
    before = files(run)
    assert says in cli.refused("train", "-r", run, "--gpus", "cpu", STEPS.format(4))
    assert files(run) == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.params.use_ema=false"], "changed: model.params.use_ema from True to False"),
        (["model.params.linear_end=0.02"], "has other values of betas"),
        (["model.params.timesteps=500"], "has of another size"),
        (["model.params.trainable=fusion"], "changed: model.params.trainable from all to fusion"),
        (["model.params.control_stage_config.params.hint_widths.3=16"], "has of another size"),
        (["model.params.control_stage_config.params.zero_init=false"], "at the start of a run alone"),
        (["lightning.trainer.val_check_interval=100"], "val_check_interval"),
        (["--pretrain-path", "some.ckpt"], "--pretrain-path with --resume"),
        (["-n", "other"], "-n other"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_refused_resume_leaves_the_run_as_it_was(cli, run, settings, says):
    before = files(run)
    assert says in cli.refused("train", "-r", run, "--gpus", "cpu", STEPS.format(4), *settings)
    after = files(run)
    after.pop(Path(".lock"), None)
    before.pop(Path(".lock"), None)
    assert after == before


def test_a_refused_start_leaves_nothing(cli, scenes, tmp_path):
    wrong = "lightning.trainer.val_check_interval=100"
    assert "val_check_interval" in cli.refused("train", *options(scenes, tmp_path, "run", wrong))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_checkpoint_outside_a_run_is_refused(cli, run, tmp_path):
    shutil.copy(run / "checkpoints/last.ckpt", tmp_path / "some.ckpt")
    said = cli.refused("train", "-r", tmp_path / "some.ckpt", "--config-model", run / "config.yaml", "--gpus", "cpu")
    assert "lies in no run's folder" in said and not (tmp_path.parent / "config.yaml").exists()


# ---- where validations happen, and what is kept


@pytest.mark.parametrize(
    ("settings", "stops", "end"),
    [
        (["lightning.trainer.check_val_every_n_epoch=2"], [5], 17),
        (["lightning.trainer.check_val_every_n_epoch=1", "lightning.trainer.val_check_interval=2"], [4], 9),
        (["lightning.trainer.check_val_every_n_epoch=1", "lightning.trainer.max_epochs=2"], [6], -1),
    ],
    ids=["every second epoch", "twice an epoch", "by epochs"],
)
def test_validations_and_kept_checkpoints_are_those_of_an_unbroken_run(cli, scenes, tmp_path, settings, stops, end):
    cli("train", *options(scenes, tmp_path, "whole", *settings, STEPS.format(end)))
    cli("train", *options(scenes, tmp_path, "part", *settings, STEPS.format(stops[0])))
    for stop in [*stops[1:], end]:
        cli("train", "-r", tmp_path / "part", "--gpus", "cpu", STEPS.format(stop))
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert validations(part) == validations(whole) and kept(part) == kept(whole)
    for name in kept(whole):
        a, b = content(whole, name), content(part, name)
        assert (a["global_step"], a["epoch"]) == (b["global_step"], b["epoch"])
        assert a["loops"]["fit_loop"]["epoch_progress"] == b["loops"]["fit_loop"]["epoch_progress"]


@pytest.mark.parametrize("interval", [2, 4], ids=["within an epoch", "end of an epoch"])
def test_a_validation_that_a_signal_cut_off_is_made_up_for(cli, scenes, tmp_path, monkeypatch, interval):
    often = ["lightning.trainer.check_val_every_n_epoch=1", f"lightning.trainer.val_check_interval={interval}"]
    cli("train", *options(scenes, tmp_path, "whole", *often, STEPS.format(5)))

    def at_the_validation(self, trainer, *_):
        if trainer.global_step == interval:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_validation_batch_start", at_the_validation, raising=False)
    cli("train", *options(scenes, tmp_path, "part", *often, STEPS.format(5)), code=143)
    monkeypatch.undo()
    cli("train", "-r", tmp_path / "part", "--gpus", "cpu")
    assert validations(tmp_path / "part") == validations(tmp_path / "whole")
    assert kept(tmp_path / "part") == kept(tmp_path / "whole")


# ---- one at a time, full disks, dry runs


def test_a_second_training_in_one_folder_says_who_is_there(cli, scenes, run):
    with only_writer(run, "--resume"):
        assert "is writing there" in cli.refused("train", "-r", run, "--gpus", "cpu", STEPS.format(4))
    empty = run.parent / "new"
    with only_writer(empty, "--logdir"):
        assert "process " in cli.refused("train", *options(scenes, run.parent, "new", STEPS.format(1)))
    assert not (empty / "config.yaml").exists()


def test_a_full_disk_is_one_line_and_the_old_checkpoint_whole(cli, run):
    before = (run / "checkpoints/last.ckpt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        said = cli.refused("train", "-r", run, "--gpus", "cpu", STEPS.format(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk full" in said and str(run / "checkpoints/last.ckpt") in said
    assert (run / "checkpoints/last.ckpt").read_bytes() == before and kept(run) == ["last.ckpt"]
    cli("train", "-r", run, "--gpus", "cpu", STEPS.format(3))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (["lightning.callbacks.image_logger.params.steps=501"], "image_logger: steps: 501: must be 1 to 500"),
        (["lightning.callbacks.image_logger.params.guidance_scale=abc"], "guidance_scale"),
        (["lightning.save_every=0"], "save_every"),
        (["lightning.modelcheckpoint.params.save_last=false"], "save_last"),
        (["--precision", "16-mixed"], "the CPU does not have it; take bf16-mixed or 32-true"),
        (["--precision", "64-true"], "choose one of 32-true, bf16-mixed, 16-mixed"),
        (["lightning.trainer.precision=16"], "the CPU does not have it"),
        (["lightning.trainer.strategy=deepspeed"], "lightning.trainer"),
        (["lightning.trainer.strategy=fsdp"], "lightning.trainer"),
        (["lightning.trainer.max_time=abc"], "lightning.trainer"),
        (["-n", "../elsewhere"], "../elsewhere: write a name"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_dry_run_knows_what_the_run_would_trip_over(cli, scenes, tmp_path, setting, says):
    assert says in cli.refused("train", *options(scenes, tmp_path, "run", "--dry-run"), *setting)


def test_a_dry_run_makes_a_batch(cli, scenes, tmp_path, monkeypatch):
    from cldm.data.pairs import PairedImages

    read = PairedImages.__getitem__

    def uneven(self, key):
        item = read(self, key)
        return {**item, "jpg": item["jpg"][:, : 32 - key[1] if isinstance(key, tuple) else 32]}

    monkeypatch.setattr(PairedImages, "__getitem__", uneven)
    assert "data: train: its first 2 items make no batch" in cli.refused(
        "train", *options(scenes, tmp_path, "run", "--dry-run")
    )
    with pytest.raises(InputError):
        DataModuleFromConfig(0, {"target": "x"})


def test_a_run_that_saved_nothing_is_started_again(cli, scenes, tmp_path, monkeypatch):
    def killed(self, trainer, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", killed, raising=False)
    cli("train", *options(scenes, tmp_path, "run"), code=130)
    monkeypatch.undo()
    said = cli.refused("train", "-r", tmp_path / "run", "--gpus", "cpu")
    assert "the run ended before it saved: give its first command again" in said
    assert "holds step 1" in cli("train", *options(scenes, tmp_path, "run", STEPS.format(1)))
    (tmp_path / "run/checkpoints/last.ckpt").rename(tmp_path / "run/checkpoints/epoch=000000.ckpt")
    assert "holds a run" in cli.refused("train", *options(scenes, tmp_path, "run"))
    assert "take --resume" in cli.refused("train", "-r", tmp_path / "run", "--gpus", "cpu")

"""Training by the command line: what learns, what is written, and that a run can be stopped anywhere."""

import copy
import os
import re
import runpy
import signal
import sys

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cldm.build import create_model, load_config, outline
from cldm.data.datamodule import DataModuleFromConfig
from common.files import flock, only_writer
from tests.children import Command
from tests.conftest import SMALL


def options(scenes, logdir, name, *more):
    return [
        "--config-model",
        SMALL,
        "-n",
        name,
        "-l",
        logdir,
        "--data-root",
        scenes,
        "--gpus",
        "cpu",
        "--train-txt-file",
        scenes / "train_set_items.json",
        "--val-txt-file",
        scenes / "test_set_items.json",
        f"model.params.classes={scenes}/classes.json",
        *more,
    ]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def validation_losses(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.value for event in EventAccumulator(str(run / "tensorboard")).Reload().Scalars("val/loss")]


def test_one_step_moves_exactly_what_trains(golden, golden_model, recipe):
    model = copy.deepcopy(golden_model)
    learning = create_model(golden / "tisynth_small.yaml")
    trains = {name for name, p in learning.named_parameters() if p.requires_grad}
    # both branches but the zero convolutions whose features no attention reads, and all the new attention
    unread = tuple(f"{b}.zero_convs.{i}." for b in ("control_model", "ssl_stage_model") for i in (9, 10, 11))
    expected = {
        name
        for name, _ in model.named_parameters()
        if (name.startswith(("control_model.", "ssl_stage_model.")) and not name.startswith(unread))
        or "attn00_ls_trainable" in name
        or "attn01_ssl_trainable" in name
        or "norm00_trainable" in name
        or "norm01_trainable" in name
    }
    assert trains == expected and len([n for n in trains if "middle_block.1" in n and "_trainable" in n]) == 14

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trains)
    model.learning_rate, model.weight_decay = 1e-3, 0.0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    noise = {k: torch.from_numpy(recipe.noise(k, (1, 4, 8, 8))) for k in ("x", "ref", "eps")}
    cond = {
        "c_concat": [torch.rand(1, 3, 64, 64)],
        "c_crossattn": [torch.from_numpy(recipe.noise("text", (1, 77, 48)))],
        "c_ssl": [noise["ref"]],
    }
    model.p_losses(noise["x"], cond, torch.tensor([500]), noise["eps"]).mean().backward()
    configured = model.configure_optimizers()
    configured["optimizer"].step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # of one token, the middle block's, a softmax is 1: its queries and keys move by rounding, where the machine has any
    one_token = {name for name in expected if re.search(r"middle_block\.1\..*attn1\.to_[qk]\.", name)}
    assert moved <= expected and expected - moved <= one_token


def test_a_run_writes_what_it_says(cli, scenes, tmp_path):
    images = "lightning.callbacks.image_logger.params.batch_frequency=4"
    rescaled = "lightning.callbacks.image_logger.params.guidance_rescale=0.7"
    hidden = "data.params.validation.params.drop_reference_p=0.5"  # of an item that is drawn
    out = cli("train", *options(scenes, tmp_path, "run", images, rescaled, hidden, "lightning.trainer.max_steps=4"))
    run = tmp_path / "run"
    assert "trained 4 steps" in out and "that train" in out and "control_model" in out
    assert OmegaConf.load(run / "config.yaml").model.params.learning_rate == pytest.approx(2e-3)  # rate x batch
    assert Image.open(run / "images" / "step_000004.png").size == (4 * 32 + 3 * 4, 2 * 32 + 4)
    assert list((run / "tensorboard").glob("events*"))
    assert not list(run.rglob("*.tmp*"))
    # a finished run's settings and weights are what inference takes
    create_model(run / "config.yaml", run / "checkpoints" / "last.ckpt")
    # the same name again is refused, not overwritten
    assert "holds a run" in cli.refused("train", *options(scenes, tmp_path, "run"))


EMA, STEPS = "model.params.use_ema=true", "lightning.trainer.max_steps={}"


def train_in(folder, scenes, *more):
    """A run for several tests, trained in this process: in another, threads and with them rounding may be others."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["train", *map(str, options(scenes, folder, "run", *more))])
        runpy.run_module("scripts.train", run_name="__main__")
    assert end.value.code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def unbroken(scenes, tmp_path_factory):
    """Weights after 7 steps without a stop."""
    return weights(train_in(tmp_path_factory.mktemp("unbroken"), scenes, EMA, STEPS.format(7)))


@pytest.mark.parametrize("stop", [1, 4, 5], ids=["first step", "end of an epoch", "within an epoch"])
def test_a_resumed_run_is_the_unbroken_run(cli, scenes, tmp_path, unbroken, stop):
    # 8 items, batch 2: an epoch is 4 steps; the running average and the optimizer go on, too
    cli("train", *options(scenes, tmp_path, "part", EMA, STEPS.format(stop)))
    cli("train", "--resume", tmp_path / "part", "--gpus", "cpu", STEPS.format(7))
    part = weights(tmp_path / "part")
    assert [k for k in unbroken if not torch.equal(unbroken[k], part[k])] == []
    assert unbroken.keys() == part.keys() and any(k.startswith("model_ema.") for k in unbroken)


def test_validation_is_the_same_for_the_same_weights(cli, scenes, tmp_path):
    slow = ["base_learning_rate=0", "lightning.trainer.check_val_every_n_epoch=1", "lightning.trainer.max_epochs=2"]
    run = cli("train", *options(scenes, tmp_path, "still", *slow, "lightning.trainer.max_steps=-1"))
    assert "trained 8 steps" in run
    first, second = validation_losses(tmp_path / "still")
    assert first == second


@pytest.mark.parametrize("batch_size", [1, 3])
def test_losses_do_not_depend_on_the_batch(scenes, batch_size):
    from torch.utils.data import default_collate

    from cldm.data.pairs import PairedImages

    torch.manual_seed(0)
    model = create_model(SMALL, classes=str(scenes / "classes.json"))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    table = str(scenes / "classes.json")
    data = PairedImages(scenes, scenes / "train_set_items.json", 32, 0.5, "palette", table, multiple_of=16)
    items = [data[3, i] for i in range(6)]

    def losses(size):
        with torch.no_grad():
            batches = [default_collate(items[i : i + size]) for i in range(0, 6, size)]
            return torch.cat([model.batch_losses(batch) for batch in batches])

    assert torch.allclose(losses(batch_size), losses(6), rtol=1e-4)


def test_two_processes_train_as_one(cli, scenes, tmp_path):
    # 8 items, 2 a step: shared by two processes, or not; SGD would be exact, AdamW magnifies rounding of tiny gradients
    three = tmp_path / "three.json"  # to validate on: one process has two of them, the other one
    three.write_text("".join((scenes / "test_set_items.json").read_text().splitlines(keepends=True)[:3]))
    change = ["model.params.warmup_steps=1000", "lightning.trainer.max_steps=4", "--val-txt-file", three]
    change += ["lightning.trainer.check_val_every_n_epoch=1"]
    cli("train", *options(scenes, tmp_path, "one", *change))
    arguments = [*options(scenes, tmp_path, "two", *change), "--gpus", "cpu:2", "data.params.batch_size=1"]
    assert Command(tmp_path / "log", "train", *arguments).wait() == 0  # Lightning starts its second process
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((one[k].float() - two[k].float()).abs().max().item() for k in one) < 1e-5
    (one_loss,), (two_losses,) = validation_losses(tmp_path / "one"), validation_losses(tmp_path / "two")
    assert two_losses == pytest.approx(one_loss, rel=1e-4)


def test_sigterm_saves_and_ends_cleanly(cli, scenes, tmp_path):
    steps = "lightning.trainer.max_steps={}"
    endless = options(scenes, tmp_path, "run", steps.format(10**6), "data.params.num_workers=1")
    process = Command(tmp_path / "log", "train", *endless)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    process.runs_until(checkpoint.exists)
    os.killpg(process.pid, signal.SIGTERM)  # as clusters do: every process of the job, those that read items too
    assert process.wait(60) == 143, process.said()  # not 0: what follows must not take the run for done
    assert "SIGTERM: saved" in process.said() and "Traceback" not in process.said()
    done = torch.load(checkpoint, weights_only=True)["global_step"]
    more = cli("train", "--resume", tmp_path / "run", "--gpus", "cpu", steps.format(done + 2))
    assert f"trained {done + 2} steps" in more


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(cli, scenes, tmp_path, monkeypatch, times):
    """Once: saves and ends; twice: ends at once."""
    from ldm.training.stop_on_signal import StopOnSignal

    def at_second_step(self, trainer, *_):
        if trainer.global_step == 1:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", at_second_step, raising=False)
    out = cli("train", *options(scenes, tmp_path, "run"), code=130)
    assert "newest checkpoint" not in out
    assert signal.getsignal(signal.SIGINT) == before
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert last.exists() == (times == 1)
    assert times == 2 or torch.load(last, weights_only=True)["global_step"] == 2


def test_a_signal_during_validation_waits_for_gradients(cli, scenes, tmp_path, monkeypatch):
    """Validation after 3 of 4 batches, steps of 2: no checkpoint could hold the third batch's gradients."""
    from ldm.training.stop_on_signal import StopOnSignal

    run = [
        "lightning.trainer.accumulate_grad_batches=2",
        "lightning.trainer.val_check_interval=3",
        "lightning.trainer.check_val_every_n_epoch=1",
        "lightning.trainer.max_steps=4",
    ]
    cli("train", *options(scenes, tmp_path, "whole", *run))
    monkeypatch.setattr(
        StopOnSignal, "on_validation_batch_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM), raising=False
    )
    cli("train", *options(scenes, tmp_path, "part", *run), code=143)
    monkeypatch.undo()
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    cli("train", "--resume", tmp_path / "part", "--gpus", "cpu")
    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert [k for k in whole if not torch.equal(whole[k], part[k])] == []


def test_settings_after_options_of_several_words(cli, scenes, tmp_path):
    steps = "lightning.trainer.max_steps=7"
    out = cli("train", *options(scenes, tmp_path, "run", "--dry-run", "--allow-mismatch", "all", steps))
    assert "max_steps: 7" in out


@pytest.mark.parametrize("interval", [0.5, 1.0], ids=["within an epoch", "end of an epoch"])
def test_sigterm_during_validation(cli, scenes, tmp_path, monkeypatch, interval):
    from ldm.training.stop_on_signal import StopOnSignal

    often = ["lightning.trainer.check_val_every_n_epoch=1", f"lightning.trainer.val_check_interval={interval}"]
    run = [*often, "lightning.trainer.max_steps=7"]
    cli("train", *options(scenes, tmp_path, "whole", *run))

    def at_first_batch(self, trainer, model, batch, batch_idx, *_):
        assert batch_idx == 0  # the second one is not waited for
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_validation_batch_start", at_first_batch, raising=False)
    cli("train", *options(scenes, tmp_path, "part", *run), code=143)
    monkeypatch.undo()
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4 * interval
    cli("train", "--resume", tmp_path / "part", "--gpus", "cpu")
    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert [k for k in whole if not torch.equal(whole[k], part[k])] == []


def test_last_is_the_newest_after_a_stop_before_the_first_checkpoint(cli, scenes, tmp_path, monkeypatch):
    from ldm.training.stop_on_signal import StopOnSignal

    def at_first_step(self, trainer, model, *_):
        assert model.control_model.training and not model.first_stage_model.training
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_start", at_first_step, raising=False)
    cli("train", *options(scenes, tmp_path, "run"), code=143)
    monkeypatch.undo()
    checkpoints = tmp_path / "run" / "checkpoints"
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 1
    (checkpoints / ".last.x.tmp.ckpt").write_bytes(b"cut off")
    cli("train", "--resume", tmp_path / "run", "--gpus", "cpu", "lightning.trainer.max_steps=6")
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 6
    assert not [p.name for p in checkpoints.iterdir() if p.name.startswith(("last-", "."))]


def test_a_text_encoder_from_a_folder(cli, scenes, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **shape)).save_pretrained(tmp_path / "t")
    version = f"model.params.cond_stage_config.params.version={tmp_path / 't'}"
    assert "dry run" in cli("train", *options(scenes, tmp_path, "run", version, "--dry-run"))


def test_noise_is_exact_in_half_precision():
    model = create_model(SMALL, classes="MBRSC")
    exact = model.alphas_cumprod.clone()
    x, noise, seen = torch.zeros(1, 48, 8, 8), torch.ones(1, 48, 8, 8), []
    model.apply_model = lambda x_noisy, t, cond: seen.append(x_noisy) or torch.zeros_like(x_noisy)
    with torch.autocast("cpu", torch.bfloat16):
        model.p_losses(x, {}, torch.tensor([0]), noise)
        model.conditions = lambda batch, seeds: {}
        model.batch_losses({"jpg": torch.rand(1, 3, 32, 32), "seed": torch.tensor([3])})
    assert torch.allclose(seen[0], (1 - exact[0]).sqrt()) and seen[1].dtype == torch.float32
    model.to(torch.bfloat16)  # the weights, not the schedule
    assert torch.equal(model.alphas_cumprod, exact) and model.betas.dtype == torch.float32
    assert next(model.control_model.parameters()).dtype == torch.bfloat16


def test_a_diverged_run_stops_with_a_reason(cli, scenes, tmp_path):
    out = cli("train", *options(scenes, tmp_path, "run", "base_learning_rate=1e30"), code=1)
    assert "error: the loss is nan at step" in out and "base_learning_rate" in out and "Traceback" not in out


def test_dry_run_trains_nothing(cli, scenes, tmp_path):
    out = cli("train", *options(scenes, tmp_path, "run", "--dry-run"))
    assert "dry run" in out and "that train" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--gpus", "0"], "--gpus 0: no GPU 0 here"),
        (["--gpus", "first"], "write auto, cpu, or indices"),
        (["--config-model", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["model.params.unet_config.params.model_chanels=8"], "model_chanels"),
        (["model.params.hint_encoding=onehot"], "mask branch reads 3 (control_stage_config.params.hint_channels)"),
        (["model.params.channels=4"], "channels is 4, unet_config's in_channels 48"),
        (["model.params.ema_decay=7"], "ema_decay: 7"),
        (["lightning.trainer.max_stepps=3"], "max_stepps"),
        (["oops"], "oops: not understood"),
        (["--precision", "bf16-true"], "take bf16-mixed"),
        (["model.params.trainable=fusion"], "--pretrain-path is needed"),
        (["base_learning_rate=high"], "base_learning_rate=high (command line), field base_learning_rate: 'high' input"),
        (["lightning.callbacks.image_logger.params.sampler=ddpm"], "image_logger.params.sampler: 'ddpm'"),
        (["lightning.callbacks.image_logger.params.batch_freqency=9"], "batch_freqency"),
        (["lightning.callbacks.image_logger.params.guidance_rescale=2"], "image_logger.params.guidance_rescale"),
        (["lightning.modelcheckpoint.params.every_n_epoch=1"], "modelcheckpoint.params"),
        (["lightning.trainer.strategy=fsdp", "model.params.use_ema=true"], "running averages"),
        (["--pretrain-path", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["--resume", "nowhere"], "--resume nowhere"),
        (["--train-txt-file", "nowhere.json"], "nowhere.json"),
    ],
    ids=lambda v: v if isinstance(v, str) else " ".join(v),
)
def test_bad_input_is_refused(cli, scenes, tmp_path, change, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert says in cli.refused("train", *options(scenes, tmp_path, "run"), *change)


def test_faulty_items_are_listed_or_left_out(cli, scenes, tmp_path):
    lines = (scenes / "train_set_items.json").read_text().splitlines()
    faulty = tmp_path / "items.json"
    faulty.write_text("\n".join([*lines[:4], "not json", lines[4].replace("label_train/", "label_trian/")]))
    changed = options(scenes, tmp_path, "run", "--train-txt-file", faulty)
    out = cli("train", *changed, code=2)
    assert "items.json: 2 faults; line 5" in out and "; line 6" in out and "Traceback" not in out
    out = cli("train", *changed, "--skip-invalid", "lightning.trainer.max_steps=1")
    assert "4 items, 2 left out" in out


def test_published_code_trains_less(golden, golden_model, recipe):
    """``trainable: published``: what the published optimizer's list and its no_grad leave, and nothing else."""

    def learns(**params):
        config = OmegaConf.load(golden / "tisynth_small.yaml")
        config.model.params.update(params)
        return {name for name, p in outline(load_config(config)).named_parameters() if p.requires_grad}

    trains = learns(trainable="published")
    assert not any(name.startswith("control_model.") for name in trains)
    assert not any("middle_block" in name for name in trains)
    model = copy.deepcopy(golden_model)
    model.trainable = "published"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trains)
    noise = {k: torch.from_numpy(recipe.noise(k, (1, 4, 8, 8))) for k in ("x", "ref", "eps")}
    cond = {
        "c_concat": [torch.rand(1, 3, 64, 64)],
        "c_crossattn": [torch.from_numpy(recipe.noise("text", (1, 77, 48)))],
        "c_ssl": [noise["ref"]],
    }
    model.p_losses(noise["x"], cond, torch.tensor([500]), noise["eps"]).mean().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == trains
    # what the middle block alone reads moves nothing: the gradient stops there, as under no_grad
    gone = learns() - trains
    assert {name.split(".")[0] for name in gone} == {"control_model", "ssl_stage_model", "model"}
    more = learns(sd_locked=False) - learns()
    assert {name.split(".")[2] for name in more} == {"output_blocks", "out"}


def test_data_workers_do_not_hold_a_runs_lock(scenes, tmp_path):
    import fcntl

    items = {"data_root": str(scenes), "txt_file": str(scenes / "train_set_items.json"), "size": 64}
    data = DataModuleFromConfig(2, {"target": "cldm.data.pairs.PairedImages", "params": items}, num_workers=1)
    data.setup()
    with only_writer(tmp_path, "--logdir"):
        batches = iter(data.train_dataloader())
        next(batches)
    with flock(tmp_path / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:  # its worker lives on
        assert alone and batches is not None

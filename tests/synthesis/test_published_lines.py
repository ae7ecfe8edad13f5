"""train.sh's, inference.sh's and demo.sh's published lines as they stand, file names aside; what options became."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cldm.training.published_line import TRAINER, WITHOUT_EFFECT, gpus_of, read_line
from common.errors import InputError
from tests.conftest import ROOT, SMALL
from tests.synthesis.conftest import records


@pytest.fixture
def train_line(scenes, ckpt, tmp_path):
    """train.sh, with the options that small data needs behind it."""
    return lambda *more: [
        "--base",
        SMALL,
        "-t",
        "--pretrain_path",
        ckpt,
        "--config_model",
        SMALL,
        "-n",
        "--gpus",
        "cpu",
        "--data_root",
        scenes,
        "--train_txt_file",
        "train_set_items.json",
        "--val_txt_file",
        "test_set_items.json",
        "-l",
        tmp_path / "logs",
        f"--model.params.classes={scenes / 'classes.json'}",
        *more,
    ]


def test_train_as_published(cli, train_line, tmp_path):
    out = cli(
        "train",
        *train_line("--max_steps", "2", "--log_every_n_steps=1", "--check_val_every_n_epoch", "1"),
        "--limit_val_batches",
        "1",
        "--gradient_clip_val",
        "0.5",
        "--accumulate_grad_batches",
        "1",
        "--no-test",
        "y",
        "-d",
        "no",
        "-f",
        "_tail",
        "--sd_locked",
        "n",
        "--scale_lr",
        "f",
        "--data.params.batch_size",
        "4",
        "lightning.callbacks.image_logger.params.max_images=0",
        "--resume_from_checkpoint=",
        "--track_grad_norm",
        "2",
        "-r",
        "--num_sanity_val_steps",
        "0",
        "--default_root_dir",
        "elsewhere",
    )
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name.endswith("_tail") and "trained 2 steps" in out
    lines = out.splitlines()
    assert "--no-test: without effect (see --help)" in lines and "--debug: without effect (see --help)" not in lines
    assert "--track_grad_norm: without effect; Lightning 2 has it no more" in lines
    config = OmegaConf.load(run / "config.yaml")
    trainer = config.lightning.trainer
    assert (trainer.max_steps, trainer.log_every_n_steps, trainer.limit_val_batches) == (2, 1, 1)
    assert (trainer.gradient_clip_val, config.data.params.batch_size, config.scale_lr) == (0.5, 4, False)
    assert config.model.params.sd_locked is False


def test_devices_and_start_weights_by_their_other_names(cli, train_line, ckpt):
    line = [word for word in train_line("--dry_run") if word not in ("--gpus", "cpu", "--pretrain_path", ckpt)]
    out = cli(
        "train",
        *line,
        "--accelerator",
        "cpu",
        "--devices",
        "1",
        "--actual_resume",
        ckpt,
        "--strategy",
        "auto",
        "--precision",
        "32",
        "--num_nodes",
        "1",
        "--fast_dev_run",
        "--val_check_interval",
        "1.0",
    )
    assert "--actual-resume: taken as --pretrain-path" in out and "fast_dev_run: true" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--max_step", "3"], "--max_step: no such option; did you mean --max_steps?"),
        (["--frobnicate"], "--frobnicate: no such option"),
        (["--max_steps"], "--max_steps: give its value"),
        (["--max_steps", "--fast_dev_run"], "--max_steps: give its value"),
        (["--max_steps", "ten"], "max_steps"),
        (["--accelerator", "tpu"], "--accelerator tpu: choose cpu, gpu or auto"),
        (["--devices", "some", "--gpus", "auto"], "--devices some: write a number"),
        (["--devices", "2"], "--gpus cpu: --accelerator and --devices say something else"),
        (["--only_mid_control", "true"], "only_mid_control"),
        (["--sd_locked", "perhaps"], "--sd-locked: perhaps: write true or false"),
        (["--model.params.nothing", "1"], "nothing"),
        (["--base_learning_rate"], "--base_learning_rate: give its value"),
    ],
)
def test_what_is_wrong_is_refused(cli, train_line, words, reason):
    assert reason in cli.refused("train", *train_line("--dry_run"), *words)


def test_each_option_of_lightning_is_known():
    import inspect

    import pytorch_lightning

    known = {*TRAINER, *WITHOUT_EFFECT, "accelerator", "devices", "num_nodes"}
    names = set(inspect.signature(pytorch_lightning.Trainer.__init__).parameters) - {"self"}
    assert names <= known and "max_steps" in names
    line = read_line(["--max_steps=-1", "--benchmark", "a=b", "--devices", "2", "-x", "--own", "1"], ["--own"])
    assert line.settings == ["lightning.trainer.max_steps=-1", "lightning.trainer.benchmark=true"]
    assert line.others == ["a=b", "-x", "--own", "1"] and line.taken == {"devices": "2"}
    assert [gpus_of("cpu", "2"), gpus_of("gpu", "2"), gpus_of(None, "0,3"), gpus_of("gpu", "-1")] == [
        "cpu:2",
        "0,1",
        "0,3",
        "auto",
    ]
    with pytest.raises(InputError):
        gpus_of("gpu", "0")


@pytest.fixture
def published_line(scenes, ckpt, tmp_path):
    """inference.sh, and demo.sh, which differs in values alone."""
    return lambda *more: [
        "--batch_size",
        "1",
        "--config",
        SMALL,
        "--ckpt",
        ckpt,
        "--dataset",
        "GID26K",
        "--ddim_steps",
        "3",
        "--seed",
        "1",
        "--outdir",
        tmp_path / "synth",
        "--txt_file",
        scenes / "inference_set_items.json",
        "--data_root",
        scenes,
        "--classes",
        scenes / "classes.json",
        "--gpus",
        "cpu",
        "--num_workers",
        "0",
        *more,
    ]


def test_inference_as_published(cli, published_line, tmp_path):
    shape = ["--H", "32", "--W", "32", "--C", "48", "--f", "4"]
    more = ["--precision", "autocast", "--fixed_code", "--err_log", "log", "--scale", "2", "--ddim_eta", "0"]
    out = cli("inference", *published_line(*shape, *more))
    assert "--precision autocast: taken as --precision 32" in out and "--fixed-code: without effect" in out
    names = sorted(path.name for path in (tmp_path / "synth").glob("*.jpg"))
    assert len(names) == 8 and all(name.endswith("_seed_1.jpg") for name in names)
    assert {record["reference_latent"] for record in records(tmp_path / "synth")} == {"mode"}
    # the other way to read a reference makes other pictures, which do not go into one folder
    reason = cli.refused("inference", *published_line("--scale", "2", "--reference_latent", "sample"))
    assert "was made with reference_latent mode, not sample" in reason


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dataset", "COCO"], "--dataset COCO: was never implemented"),
        (["--H", "64"], "--H 64: line 1 of the list, field source: "),
        (["--W", "512", "--size", "64"], "would be 64 x 64 px"),
        (["--C", "4"], "--C 4: the model of"),
        (["--f", "8"], "--f 8: the model of"),
        (["--precision", "half"], "--precision"),
    ],
)
def test_another_shape_is_refused(cli, published_line, words, reason):
    assert reason in cli.refused("inference", *published_line("--dry_run"), *words)


def test_the_published_demonstration(cli, scenes, ckpt, tmp_path):
    """demo/published.sh with a small model: a folder with masks, references and demo.json."""
    data = tmp_path / "GID_demo"
    shutil.copytree(scenes, data)
    first = (data / "inference_set_items.json").read_text().splitlines()[0]
    (data / "demo.json").write_text(first + "\n")
    tell = tmp_path / "python"  # in its place: what it would be started with
    tell.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tell.chmod(0o755)
    variables = {
        **os.environ,
        "DATA": str(data),
        "OUT": str(tmp_path / "out"),
        "CONFIG": str(SMALL),
        "PYTHON": str(tell),
    }
    command = ["bash", str(ROOT / "demo" / "published.sh")]
    more = ["--ddim_steps", "2", "--gpus", "cpu", "--num_workers", "0", "--classes", str(scenes / "classes.json")]
    done = subprocess.run([*command, str(ckpt), *more], env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[:2] == ["-m", "scripts.inference"], done.stderr
    cli("inference", *done.stdout.splitlines()[2:])
    assert [path.name for path in (tmp_path / "out").glob("*.jpg")] == [
        f"{Path(json.loads(first)['source']).stem}_seed_1.jpg"
    ]
    none = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert none.returncode == 2 and "needs the published weights" in none.stderr
    del variables["DATA"]
    absent = subprocess.run([*command, "x.ckpt"], env=variables, cwd=tmp_path / "out", capture_output=True, text=True)
    assert absent.returncode == 2 and absent.stderr.startswith("error: demo/GID_demo/demo.json: no such list")

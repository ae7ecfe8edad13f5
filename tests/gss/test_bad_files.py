"""train_dvae and posterior_learning on damaged files, full disks, signals, and two at a time."""

import fcntl
import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common import command as commands
from gss.dvae_training import Trainer
from gss.palette_search import voronoi_masks
from scripts import train_dvae
from tests.children import in_child

PALETTE = {"classes": ["a", "b", "c"], "palette": [[255, 0, 0], [0, 255, 0], [0, 0, 255]], "ignore_color": [0, 0, 0]}


@pytest.fixture
def options(tmp_path):
    (tmp_path / "masks").mkdir()
    for i, mask in enumerate(voronoi_masks(3, 2, 48, seed=1)):
        Image.fromarray(mask.numpy().astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
    (tmp_path / "palette.json").write_text(json.dumps(PALETTE))
    return [
        "--masks",
        tmp_path / "masks",
        "--palette",
        tmp_path / "palette.json",
        "--out",
        tmp_path / "d.safetensors",
        "--steps",
        6,
        "--warmup",
        2,
        "--batch-size",
        2,
        "--crop-size",
        32,
        "--scale",
        1,
        "--n-hid",
        4,
        "--n-init",
        4,
        "--vocab-size",
        16,
        "--save-every",
        2,
    ]


def train(options):
    """The command in a forked process; its exit code, or minus the signal that ended it."""
    words = [str(word) for word in options]
    return in_child(lambda: commands.run(lambda: train_dvae.main(words)))


@pytest.fixture
def stopped(options, monkeypatch, tmp_path, cli):
    """A training that SIGTERM stopped in its fourth step, and the weights of an unbroken one."""
    cli("train_dvae", *options)
    whole = load_file(tmp_path / "d.safetensors")
    (tmp_path / "d.safetensors").unlink()
    step = Trainer.step

    def ended(self, number, crops):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, crops)

    monkeypatch.setattr(Trainer, "step", ended)
    assert train([*options, "--save-every", 100]) == -signal.SIGTERM
    monkeypatch.setattr(Trainer, "step", step)
    return tmp_path / "d.safetensors.state", whole


def test_a_signal_saves_the_step_and_damaged_states_are_refused_by_name(options, stopped, tmp_path, cli):
    state, whole = stopped
    saved = torch.load(state, weights_only=True)
    assert saved["step"] == 4  # not one of --save-every
    good = state.read_bytes()

    def changed(**fields):
        torch.save({**saved, **fields}, state)

    codes = saved["codes"]
    for damage in (
        lambda: state.write_bytes(b""),
        lambda: state.write_bytes(good[: len(good) // 2]),
        lambda: state.write_text("x"),
        lambda: torch.save([1], state),
        lambda: changed(step=9),
        lambda: changed(step="4"),
        lambda: changed(step=3),
        lambda: changed(settings=3),
        lambda: changed(dvae={}),
        lambda: changed(optimizer=None),
        lambda: changed(codes={**codes, "codes": codes["codes"] * float("nan")}),
        lambda: changed(codes={**codes, "codes": codes["codes"][:3]}),
    ):
        damage()
        error = cli.refused("train_dvae", *options)
        assert f"remove {state}" in error and not (tmp_path / "d.safetensors").exists()
    state.write_bytes(good)
    mask = tmp_path / "masks/1.png"
    before = mask.read_bytes()
    Image.new("L", (48, 48), 1).save(mask)
    assert "other settings (masks)" in cli.refused("train_dvae", *options)
    mask.write_bytes(before)
    cli("train_dvae", *options)
    again = load_file(tmp_path / "d.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole) and not state.exists()


def test_two_at_a_time_and_a_full_disk(options, tmp_path, cli):
    out = tmp_path / "d.safetensors"
    with (tmp_path / ".d.safetensors.lock").open("w") as lock:
        lock.write("process 7 on moon")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"--out {out}: process 7 on moon is writing there" in cli.refused("train_dvae", *options)
    words = [str(word) for word in options]

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        sys.stderr = (tmp_path / "said").open("w", buffering=1)
        commands.run(lambda: train_dvae.main(words))

    assert in_child(small_disk) == 2
    said = (tmp_path / "said").read_text()
    assert "error: --out: disk full" in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
    cli("train_dvae", *options)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--learning-rate", "1e9"], "take a smaller --learning-rate (it is 1e+09)"),
        (["--seed", 2**64], "--seed"),
        (["--n-hid", 10**12], "--n-hid"),
        (["--batch-size", 10**9], "--batch-size"),
        (["--vocab-size", 2**20, "--n-hid", 4096, "--n-blocks", 64], "bytes of memory"),
        (["--batch-size", 4096, "--scale", 64], "--batch-size 4096"),
    ],
)
def test_numbers_beyond_arithmetic(options, cli, more, words, tmp_path):
    assert words in cli.refused("train_dvae", *options, *more)
    assert not (tmp_path / "d.safetensors").exists()


def test_a_class_table_needs_no_palette_to_get_one(tmp_path, cli):
    table, out = tmp_path / "classes.json", tmp_path / "palette.json"
    table.write_text("\ufeff" + json.dumps({"classes": ["water", "$forest", "field"]}))
    cli("posterior_learning", "--classes", table, "--restarts", 1, "--out", out, "--picture", tmp_path / "p.png")
    assert json.loads(out.read_text())["classes"] == ["water", "$forest", "field"]
    before = out.read_bytes()
    for content in ({"classes": ["a", "A"]}, {"classes": "ab"}, [1]):
        table.write_text(json.dumps(content))
        assert str(table) in cli.refused("posterior_learning", "--classes", table, "--out", out)
    assert "is a folder" in cli.refused("posterior_learning", "--num-classes", 3, "--out", tmp_path)
    with Path(tmp_path, ".palette.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is writing there" in cli.refused("posterior_learning", "--num-classes", 3, "--out", out)
    assert out.read_bytes() == before


def test_damaged_palettes(options, cli, tmp_path):
    palette = tmp_path / "palette.json"
    two = '"palette": [[0, 0, 1], [0, 0, 2]]'
    for content in (
        "",
        "[",
        "[1]",
        '{"palette": 3}',
        '{"palette": [[0, 0, NaN], [1, 2, 3]]}',
        '{"palette": [[0, 0, 1e999], [1]]}',
        '{"palette": [[0, 0, "1"], [1, 2, 3]]}',
        '{"palette": [[0, 0], [1, 2, 3]]}',
        '{"palette": [[0, 0, 1]]}',
        f'{{{two}, "ignore_color": 3}}',
        f'{{{two}, "ignore_color": [0, 0, 1]}}',
        f'{{{two}, "classes": ["a"]}}',
        f'{{{two}, "classes": {{}}}}',
        "[" * 100_000,
        "\ud800",
        None,
    ):
        palette.unlink()
        if content is None:
            palette.mkdir()
        else:
            palette.write_bytes(content.encode("utf-8", "surrogatepass"))
        assert str(palette) in cli.refused("train_dvae", *options)

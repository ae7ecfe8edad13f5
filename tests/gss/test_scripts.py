"""Palettes and dVAEs through the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.classes import load_class_table
from common.errors import InputError
from common.images import Labels
from gss.dvae import DVAE
from gss.dvae_training import DvaeTrainingOptions, Trainer
from gss.dvae_training import train_dvae as train
from gss.maskige import Maskige
from gss.palette import PALETTE_FOLDER, load_palette, min_distance
from gss.palette_search import grid_palette, refine, spread_palette, voronoi_masks
from gss.posterior_learning import PaletteSearchOptions, learn_palette, read_masks
from gss.roundtrip import RoundTrip, class_iou, confusion, round_trip
from scripts import posterior_learning, train_dvae


@pytest.mark.parametrize("dataset", ["ade20k", "mseg"])
def test_published_grid(records, dataset):
    record = json.loads((records / "palette_and_posterior.json").read_text())["posterior_learning"][dataset]
    colors = grid_palette(record["length"], 0, dataset)
    assert colors.tolist() == record["seed0_list"]
    assert (grid_palette(record["length"], 1, dataset) != colors).any()


@pytest.mark.parametrize("count", [2, 5, 64, 100])
def test_grid_for_any_number(count):
    colors = grid_palette(count, 3)
    assert colors.shape == (count, 3) and colors.min() >= 0 and colors.max() <= 255 and min_distance(colors) > 5


def test_spread_finds_known_optima():
    assert min_distance(spread_palette(8, 0)) == 255  # the corners of the cube
    assert min_distance(spread_palette(2, 0)) == pytest.approx(255 * 3**0.5, abs=1)
    first = spread_palette(30, 5, restarts=2)
    assert (first == spread_palette(30, 5, restarts=2)).all()
    assert min_distance(first) > 100


def test_shipped_palettes_say_how_they_were_made(tmp_path, cli):
    """On any machine: the search counts with integers. The large ones take a minute, by the command in the file."""
    shipped = {path.stem: json.loads(path.read_text()) for path in PALETTE_FOLDER.glob("*.json")}
    assert all("command" in table or table["about"] for table in shipped.values())
    made = [name for name, table in shipped.items() if "command" in table]
    assert sorted(made) == ["ade20k", "cityscapes", "mseg"]
    command = shlex.split(shipped["cityscapes"].pop("command"))
    assert command[:3] == ["python", "-m", "scripts.posterior_learning"]
    cli("posterior_learning", *command[3:], "--out", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert {key: again[key] for key in ("classes", "palette", "ignore_index", "ignore_color")} == {
        key: shipped["cityscapes"][key] for key in ("classes", "palette", "ignore_index", "ignore_color")
    }
    assert again["report"]["spread, seed 0"]["min_distance"] > 137


def test_palette_command(tmp_path, command):
    table = {"classes": ["a", "b", "c"], "palette": [[1, 2, 3], [2, 3, 4], [3, 4, 5]], "ignore_color": [9, 9, 9]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    out, picture = tmp_path / "palette.json", tmp_path / "palette.png"
    code, printed, errors = command(
        posterior_learning, "--classes", tmp_path / "classes.json", "--restarts", 2, "--out", out, "--picture", picture
    )
    assert code == 0, errors
    assert "smallest distance 360.00" in printed.replace("360.62", "360.00")  # four corners of the cube, two by two
    assert load_class_table(str(out)).names == ("a", "b", "c")
    assert len(load_palette(str(out), 3)) == 4
    colors = load_class_table(str(out)).labels.colors  # of masks as they are, not the learned ones
    assert colors == load_class_table(str(tmp_path / "classes.json")).labels.colors
    assert colors == ((1, 2, 3, 0), (2, 3, 4, 1), (3, 4, 5, 2), (9, 9, 9, 255))
    assert Image.open(picture).size[0] > 500


def test_command_line_of_the_shell():
    root = Path(__file__).resolve().parents[2]
    arguments = [sys.executable, "-W", "ignore", "-m", "scripts.posterior_learning", "--dataset", "mars"]
    ended = subprocess.run(arguments, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: --dataset mars: none of ade20k, cityscapes, mseg")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--num-classes: give it"),
        (["--num-classes", 1], "must be in 2..255"),
        (["--num-classes", 3, "--restarts", 0], "--restarts: 0: write a whole number, 1 to"),
        (["--num-classes", 3, "--keep-distance", 2], "--keep-distance: 2: write a number, 0 to 1"),
        (["--num-classes", 3, "--picture", "x.foo"], "--picture x.foo: name a file with one of .png"),
        (["--num-classes", 3, "--device", "tpu"], "--device tpu: write auto, cpu, cuda or cuda:N"),
        (["--dataset", "mseg", "--num-classes", 3], "mseg has 194 classes"),
        (["--num-classes", 3, "--masks", "nowhere"], "--masks nowhere: no such folder"),
        (["--num-classes", 3, "--d-vae", "nowhere.pth"], "no such file"),
        (["--classes", "nowhere.json"], "no such class table"),
    ],
)
def test_bad_options_of_palettes(command, arguments, words):
    code, _, errors = command(posterior_learning, *arguments)
    assert code == 2 and words in errors and errors.count("\n") == 1


def test_a_palette_is_learned_by_a_call(tmp_path):
    """The colors of the command, with nothing written unless asked for."""
    options = PaletteSearchOptions(num_classes=4, restarts=1, seed=3, max_masks=2)
    learned = learn_palette(options)
    assert (learned.palette == spread_palette(5, 3, restarts=1)).all() and learned.class_iou is None
    assert learned.report["spread, seed 3"]["min_distance"] == min_distance(learned.palette[:-1])
    assert shlex.split(options.command())[3:] == [
        *("--num-classes", "4", "--method", "spread", "--seed", "3", "--restarts", "1")
    ]
    with pytest.raises(InputError, match=r"^keep_distance 2: write a number, 0 to 1$"):
        PaletteSearchOptions(num_classes=4, keep_distance=2)
    with pytest.raises(InputError, match=r"^num_classes: give it, or dataset, or classes$"):
        learn_palette(PaletteSearchOptions(restarts=1))


class Blind:
    """A dVAE that sees brightness alone: two colors of equal brightness become one."""

    def tokens(self, image):
        return image.mean(1, keepdim=True).expand(-1, 3, -1, -1)

    def decode(self, tokens):
        return tokens


def test_refinement_helps_confused_classes():
    masks = voronoi_masks(4, 4, 32, seed=0)
    assert sorted(torch.cat([m.unique() for m in masks]).unique().tolist()) == [0, 1, 2, 3]
    trip = RoundTrip(masks, Blind(), 1, "cpu")
    start = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]])
    better = refine(start, trip, seed=0, rounds=4, tries=8, keep=0.1)
    assert trip.mean_iou(start) < 0.6 and trip.mean_iou(better) > trip.mean_iou(start) + 0.2
    assert (better == refine(start, trip, seed=0, rounds=4, tries=8, keep=0.1)).all()
    assert min_distance(better) >= 0.1 * min_distance(start)


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for i, mask in enumerate(voronoi_masks(3, 3, 64, seed=1)):
        array = mask.numpy().astype(np.uint8)
        array[:3] = 255
        Image.fromarray(array).save(folder / f"{i}.png")
    return folder


SMALL = [
    "--steps",
    12,
    "--warmup",
    4,
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
    5,
]
PALETTE = {"classes": ["a", "b", "c"], "palette": [[255, 0, 0], [0, 255, 0], [0, 0, 255]], "ignore_color": [0, 0, 0]}


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path, masks, command, monkeypatch):
    palette = tmp_path / "palette.json"
    palette.write_text(json.dumps(PALETTE))
    base = ["--masks", masks, "--palette", palette, *SMALL]
    code, printed, errors = command(train_dvae, *base, "--out", tmp_path / "whole.safetensors")
    assert code == 0, errors
    assert "round trip of 3 masks: mIoU" in printed

    step = Trainer.step

    def interrupted(self, number, crops):
        if number == 7:
            raise KeyboardInterrupt
        return step(self, number, crops)

    out = tmp_path / "parts.safetensors"
    monkeypatch.setattr(Trainer, "step", interrupted)
    assert command(train_dvae, *base, "--out", out)[0] == 130
    assert not out.exists() and Path(f"{out}.state").exists()
    monkeypatch.setattr(Trainer, "step", step)
    code, _, errors = command(train_dvae, *base, "--out", out, "--seed", 1)
    assert code == 2 and "run with other settings" in errors
    seen = []
    monkeypatch.setattr(Trainer, "step", lambda self, n, crops: seen.append(n) or step(self, n, crops))
    assert command(train_dvae, *base, "--out", out)[0] == 0
    assert seen == list(range(5, 12)) and not Path(f"{out}.state").exists()
    whole, parts = (DVAE(str(tmp_path / f"{name}.safetensors")).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_dvae_is_trained_by_a_call(tmp_path, masks, command):
    """To the weights of the command."""
    palette = tmp_path / "palette.json"
    palette.write_text(json.dumps(PALETTE))
    command(train_dvae, "--masks", masks, "--palette", palette, *SMALL, "--out", tmp_path / "c.safetensors")
    size = {"n_hid": 4, "n_init": 4, "vocab_size": 16, "scale": 1, "crop_size": 32}
    options = {"masks": (masks,), "palette": str(palette), "steps": 12, "warmup": 4, "batch_size": 2, **size}
    trained = train(DvaeTrainingOptions(out=tmp_path / "p.safetensors", **options))
    assert trained.tested == 3 and trained.class_iou.shape == (3,)
    by_command = DVAE(str(tmp_path / "c.safetensors")).state_dict()
    assert all(torch.equal(value, by_command[key].to(value)) for key, value in trained.dvae.state_dict().items())
    with pytest.raises(InputError, match=r"^warmup 12: must be in 1..11, below steps$"):
        DvaeTrainingOptions(out=tmp_path / "p.safetensors", **{**options, "warmup": 12})


def test_training_learns_two_colors(tmp_path, command):
    folder, palette = tmp_path / "m", tmp_path / "palette.json"
    folder.mkdir()
    for i in range(4):
        mask = np.zeros((48, 48), dtype=np.uint8)
        mask[8 * i : 8 * i + 16, 8:32] = 1
        Image.fromarray(mask).save(folder / f"{i}.png")
    palette.write_text(json.dumps({"classes": ["a", "b"], "palette": [[255, 0, 0], [0, 0, 255]]}))
    out = tmp_path / "dvae.safetensors"
    options = ["--steps", 80, "--warmup", 30, "--batch-size", 4, *SMALL[6:]]
    code, printed, errors = command(train_dvae, "--masks", folder, "--palette", palette, "--out", out, *options)
    assert code == 0, errors
    maskige, dvae = Maskige(load_palette(str(palette))), DVAE(str(out))
    masks = [torch.from_numpy(np.array(Image.open(p)).astype(np.int64))[None] for p in sorted(folder.glob("*.png"))]
    iou = class_iou(confusion(((m, round_trip(m, maskige, dvae)[0]) for m in masks), 2))
    assert f"{iou.mean():.4f}" in printed and iou.mean() > 0.8


def test_files_of_others_in_a_folder_of_masks(tmp_path, masks, command):
    """Another command may be writing there: its temporary file is no mask; a mask that is cut off is refused."""
    whole = (masks / "1.png").read_bytes()
    (masks / ".1.x.tmp.png").write_bytes(whole[:40])
    base = ["--masks", masks, "--palette", "mbrsc", "--out", tmp_path / "o.safetensors", *SMALL]
    code, printed, errors = command(train_dvae, *base)
    assert code == 0 and "round trip of 3 masks" in printed, errors
    assert len(read_masks(masks, 9, Labels(5))) == 3
    (masks / "1.png").write_bytes(whole[:40])
    for module, more in ((train_dvae, base), (posterior_learning, ["--num-classes", 5, "--masks", masks])):
        code, _, errors = command(module, *more)
        assert code == 2 and "1.png: cannot be read" in errors.splitlines()[-1] and "Traceback" not in errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--crop-size", 30], "must be a multiple of 8"),
        (["--save-every", "none"], "--save-every: none: write a whole number, 1 to"),
        (["--learning-rate", "nan"], "--learning-rate: nan: write a number, 0 to"),
        (["--out", "dvae.bin"], "--out dvae.bin: name a .safetensors or .pth file"),
        (["--crop-size", 128], "64 x 64 pixels, smaller than --crop-size 128"),
        (["--palette", "cityscapes", "--masks", "nowhere"], "--masks nowhere: no such folder"),
        (["--palette", "nothing"], "nothing.json: no such file"),
        (["--warmup", 50], "--warmup 50: must be in 1..11"),
        (["--palette", [[255, 0, 0], [0, 255, 0]]], "2.png: class ids 2 are not in 0..1"),
    ],
)
def test_bad_input_of_training(tmp_path, masks, command, change, words):
    if isinstance(change[-1], list):
        (tmp_path / "two.json").write_text(json.dumps({"palette": change[-1]}))
        change = ["--palette", tmp_path / "two.json"]
        for path in masks.glob("[01].png"):
            path.unlink()
    base = ["--masks", masks, "--palette", "mbrsc", "--out", tmp_path / "o.safetensors", *SMALL]
    code, _, errors = command(train_dvae, *base, *change)
    assert code == 2 and words in errors.splitlines()[-1] and "Traceback" not in errors
    assert not (tmp_path / "o.safetensors").exists()


def test_a_crop_of_ignored_pixels_alone_costs_nothing(tmp_path):
    palette = load_palette("mbrsc")
    options = DvaeTrainingOptions(masks=(tmp_path,), palette="mbrsc", out=tmp_path / "a.pth", n_hid=8, vocab_size=8)
    trainer = Trainer(options, Maskige(palette), "cpu")
    decoded, labels = torch.rand(1, 3, 4, 4), torch.full((1, 4, 4), 255)
    assert trainer.reconstruction_loss(decoded, 255 * decoded, labels) < 1e-12
    labels[0, 0, 0] = 1
    assert trainer.reconstruction_loss(decoded, 255 * decoded, labels) > 0

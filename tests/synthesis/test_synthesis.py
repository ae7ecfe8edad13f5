"""Synthesis by the command line: the same image in any batch, on any number of devices, after any kill."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.synthesis.records import ACTIVE, LOCK, append_record, read_records
from tests.children import Command
from tests.conftest import SMALL, without_a_class_table
from tests.synthesis.conftest import close, images, records


def test_one_image_an_item_with_its_record(made, scenes):
    pictures = images(made)
    items = [json.loads(line) for line in (scenes / "inference_set_items.json").read_text().splitlines()]
    assert set(pictures) == {f"train_{i:04d}_seed_5.png" for i in range(8)}
    assert all(p.shape == (32, 32, 3) for p in pictures.values())
    assert len({p.tobytes() for p in pictures.values()}) == 8
    for record, item in zip(records(made), items, strict=True):
        assert record["mask"].endswith(item["source"]) and record["reference"].endswith(item["ref_image"])
        assert record["prompt"] == item["prompt"] and record["seed"] == 5 and record["sampler"] == "ddim"
        assert len(record["checkpoint_hash"]) == 16 and record["steps"] == 3 and record["scale"] == 2.0


@pytest.mark.parametrize("more", [("--batch-size", "1"), ("--batch-size", "3"), ("--split-guidance",)], ids=str)
def test_an_image_does_not_depend_on_its_batch(cli, made, command, tmp_path, more):
    cli("inference", *command(tmp_path, *more))
    again = images(tmp_path)
    assert again.keys() == images(made).keys()
    assert all(close(again[name], picture) for name, picture in images(made).items())


def test_an_image_does_not_depend_on_the_order(cli, made, command, scenes, tmp_path):
    lines = (scenes / "inference_set_items.json").read_text().splitlines()
    shuffled = tmp_path / "items.json"
    shuffled.write_text("\n".join(lines[::-1][:5]))
    cli("inference", *command(tmp_path / "out", "--batch-size", "2", "--txt-file", shuffled))
    for name, picture in images(tmp_path / "out").items():
        assert close(picture, images(made)[name])


def test_called_from_python_it_yields_the_commands_images(cli, command, scenes, ckpt, tmp_path):
    from cldm.build import create_model
    from cldm.data.pairs import PairedImages
    from cldm.synthesis.options import SamplingOptions
    from cldm.synthesis.run import synthesize
    from common.pictures import to_uint8

    model = create_model(SMALL, ckpt)
    items = PairedImages(
        scenes,
        scenes / "inference_set_items.json",
        hint_encoding=model.hint_encoding,
        classes=str(scenes / "classes.json"),
        use_reference=True,
        multiple_of=model.multiple,
    )
    seen = []
    options = SamplingOptions(steps=3, scale=2.0, seed=5, batch_size=3, num_workers=0)
    yielded = dict(synthesize(model, items, options, watch=lambda i, see: seen.append((i, see()))))
    assert [i for i, _ in seen] == [0, 1, 2] * 3
    first = np.stack(list(yielded.values())[:3]).astype(float)
    away = [np.abs(to_uint8(images) - first).mean() for _, images in seen[:3]]  # they grow towards the images
    assert away[0] > away[1] > away[2] and away[2] < 10
    cli("inference", *command(tmp_path, "--batch-size", 3))
    written = images(tmp_path)
    assert {f"{name}.png" for name in yielded} == set(written)
    assert all(np.array_equal(image, written[f"{name}.png"]) for name, image in yielded.items())


def test_contact_sheet(cli, made, scenes, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    arguments = [
        "--samples",
        tmp_path / "out",
        "--data-root",
        scenes,
        "--items",
        scenes / "inference_set_items.json",
        "--classes",
        scenes / "classes.json",
        "--size",
        40,
        "--out",
        tmp_path / "sheet.png",
    ]
    assert "of 3 samples" in cli("contact_sheet", *arguments, "--count", 3)
    assert Image.open(tmp_path / "sheet.png").size == (4 * 40 + 3 * 4, 3 * 40 + 2 * 4 + 18)
    assert "of 8 samples" in cli("contact_sheet", *arguments, "--count", 99)  # there are no more
    (tmp_path / "out" / "train_0000_seed_5.png").write_bytes(b"cut off")
    assert "train_0000_seed_5.png: cannot be read" in cli.refused("contact_sheet", *arguments)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--num-workers", -1], "--num-workers: -1: write a whole number, 0 to 256"),
        (["--scale", "nan"], "--scale: nan: write a number, 0 to 1000"),
        (["--gpus", "cpu:0"], "--gpus cpu:0: write auto, cpu"),
        (["--steps", "many"], "--ddim-steps/--steps: many: write a whole number, 1 to 500"),
    ],
)
def test_numbers_out_of_range_are_refused(cli, command, tmp_path, option, words):
    assert words in cli.refused("inference", *command(tmp_path, *option))


def test_a_second_start_makes_what_is_missing(cli, made, command, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    for i in (2, 6):
        (out / f"train_{i:04d}_seed_5.png").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / ".train_0002_seed_5.x.tmp.png").write_bytes(b"cut off")
    said = cli("inference", *command(out))
    assert "6 images are in" in said and "2 to make" in said
    assert all(close(images(out)[name], picture) for name, picture in images(made).items())
    assert all((out / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert {p.name for p in out.glob(".*")} == {LOCK, ACTIVE} and len(records(out)) == 8
    assert "0 to make" in cli("inference", *command(out))


def test_a_kill_leaves_nothing_cut_off(cli, made, command, tmp_path):
    out = tmp_path / "out"
    process = Command(tmp_path / "log", "inference", *command(out, "--batch-size", "1", "--num-samples", "6"))
    process.runs_until(lambda: len(list(out.glob("[!.]*.png"))) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = images(out)  # every one opens
    assert 3 <= len(before) < 48
    assert {name.removesuffix(".png") for name in before} <= read_records(out).keys()
    cli("inference", *command(out, "--num-samples", "6"))
    assert len(images(out)) == len(records(out)) == 48
    assert all(close(images(out)[name], picture) for name, picture in images(made).items())


def test_sigterm_ends_the_run_with_all_that_was_made(command, tmp_path):
    out = tmp_path / "out"
    many = ["--batch-size", "1", "--num-samples", "1000", "--num-workers", "1"]
    process = Command(tmp_path / "log", "inference", *command(out, *many))
    process.runs_until(lambda: list(out.glob("[!.]*.png")))
    os.killpg(process.pid, signal.SIGTERM)  # as clusters do: the process that reads items gets it, too
    assert process.wait(60) == 143 and "start again" in process.said() and "Traceback" not in process.said()
    assert 1 <= len(images(out)) == len(records(out)) < 8000
    assert {p.name for p in out.glob(".*")} == {LOCK, ACTIVE}


def test_a_failed_write_is_one_line(cli, command, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left" in cli.refused("inference", *command(tmp_path)) and not list(tmp_path.glob("*.png"))


def test_only_makes_one_image_again(cli, made, command, tmp_path):
    cli("inference", *command(tmp_path, "--only", "train_0003_seed_5"))
    assert set(images(tmp_path)) == {"train_0003_seed_5.png"}
    assert close(images(tmp_path)["train_0003_seed_5.png"], images(made)["train_0003_seed_5.png"])
    assert "no such image" in cli.refused("inference", *command(tmp_path, "--only", "nobody_seed_5"))


def test_a_class_table_is_enough_where_the_file_names_none(cli, command, scenes, tmp_path):
    config, weights = without_a_class_table(tmp_path, scenes / "classes.json")
    cli("inference", *command(tmp_path / "out", "--config", config, "--ckpt", weights, "--only", "train_0003_seed_5"))
    assert "1 images are in" in cli("inference", *command(tmp_path / "out", "--config", config, "--ckpt", weights))


def test_half_precision_makes_the_same_picture(cli, made, command, tmp_path):
    cli("inference", *command(tmp_path, "--precision", "bf16"))
    for name, picture in images(tmp_path).items():
        assert np.abs(picture.astype(int) - images(made)[name].astype(int)).mean() < 3  # other noise: more than 50


def test_images_of_other_settings_are_not_mixed_in(cli, made, command, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    (out / "train_0002_seed_5.png").unlink()
    assert "made with scale 2.0, not 3.0" in cli.refused("inference", *command(out, "--scale", "3"))
    # another seed, format or one image by name is another matter, and no record is lost
    cli("inference", *command(out, "--scale", "3", "--seed", "9", "--format", "jpg"))
    assert len(records(out)) == 7 + 8


def test_a_kill_while_images_are_made_again_leaves_no_old_one_with_a_new_record(
    cli, made, command, tmp_path, monkeypatch
):
    def cut(*args):
        append_record(*args)
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    shutil.copytree(made, out)
    monkeypatch.setattr("cldm.synthesis.run.append_record", cut)
    cli.refused("inference", *command(out, "--scale", "3", "--remake"))
    said = read_records(out)
    assert {record.scale for record in said.values()} >= {3.0}
    assert all(said[name.removesuffix(".png")].scale == 2.0 for name in images(out))


def test_options_matter(cli, made, command, tmp_path):
    one = ("--only", "train_0003_seed_5")
    reference = images(made)["train_0003_seed_5.png"]
    for i, change in enumerate((["--scale", "7"], ["--sampler", "euler"], ["--ddim-steps", "5"], ["--ddim-eta", "1"])):
        cli("inference", *command(tmp_path / str(i), *one, *change))
        assert not close(images(tmp_path / str(i))["train_0003_seed_5.png"], reference), change


def test_fresh_noise_is_the_images_own(cli, command, tmp_path):
    for batch in ("1", "4"):
        cli("inference", *command(tmp_path / batch, "--ddim-eta", "1", "--batch-size", batch))
    assert all(close(images(tmp_path / "1")[name], p) for name, p in images(tmp_path / "4").items())


def test_sizes_and_aspect_ratios(cli, command, tmp_path):
    cli("inference", *command(tmp_path, "--size", "48", "80", "--only", "train_0003_seed_5"))
    assert images(tmp_path)["train_0003_seed_5.png"].shape == (48, 80, 3)


def test_jpeg(cli, command, tmp_path):
    cli("inference", *command(tmp_path, "--format", "jpg", "--only", "train_0003_seed_5"))
    assert Image.open(tmp_path / "train_0003_seed_5.jpg").format == "JPEG"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--gpus", "3"], "--gpus 3: no GPU 3 here"),
        (["--ckpt", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["--ddim-steps", "0"], "--ddim-steps/--steps: 0: write a whole number, 1 to 500"),
        (["--ddim-steps", "600"], "--ddim-steps/--steps: 600: write a whole number, 1 to 500"),
        (["--size", "44"], "multiples of"),
        (["--sampler", "euler", "--ddim-eta", "1"], "--ddim-eta"),
        (["--txt-file", "nowhere.json"], "nowhere.json"),
        (["--outdir", "/proc/synth"], "--outdir /proc/synth: cannot write there"),
    ],
    ids=lambda v: v if isinstance(v, str) else " ".join(v),
)
def test_bad_input_is_refused(cli, command, tmp_path, change, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert says in cli.refused("inference", *command(tmp_path), *change)


def spoil(folder, what):
    """Spoils the third item of a data set's inference list in one way; returns what the refusal must say."""
    items = folder / "inference_set_items.json"
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    item = lines[2]
    if what == "field":
        del item["prompt"]
    elif what == "missing file":
        item["ref_image"] = "ref_img/nothing.jpg"
    elif what == "truncated JPEG":
        path = folder / item["ref_image"]
        path.write_bytes(path.read_bytes()[:300])
    elif what == "class id":
        Image.fromarray(np.full((32, 32), 77, np.uint8)).save(folder / item["source"])
    elif what == "outside":
        item["source"] = "../elsewhere.png"
    items.write_text("\n".join("{" if what == "no JSON" and i == 2 else json.dumps(x) for i, x in enumerate(lines)))
    return {
        "field": "prompt",
        "missing file": "nothing.jpg",
        "truncated JPEG": item.get("ref_image"),
        "class id": "77",
        "outside": "elsewhere.png",
        "no JSON": "JSON",
    }[what]


@pytest.mark.parametrize("what", ["no JSON", "field", "missing file", "truncated JPEG", "class id", "outside"])
def test_a_faulty_item_is_named_by_file_line_and_field(cli, command, scenes, tmp_path, what):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    says = spoil(data, what)
    changed = ["--data-root", data, "--txt-file", data / "inference_set_items.json", "--classes", data / "classes.json"]
    said = cli.refused("inference", *command(tmp_path / "out", *changed))
    assert "inference_set_items.json" in said and "line 3" in said and says in said
    assert not (tmp_path / "out").exists()


class Trap:
    """Unpickled by code, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_with_code_is_refused_and_not_run(cli, command, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Trap(str(tmp_path / "ran"))}, tmp_path / "evil.ckpt")
    line = cli.refused("inference", *command(tmp_path / "out"), "--ckpt", tmp_path / "evil.ckpt")
    assert "evil.ckpt" in line and not (tmp_path / "ran").exists()


def test_checkpoint_of_another_architecture(cli, command, ckpt, golden, tmp_path):
    line = cli.refused("inference", *command(tmp_path), "--config", golden / "tisynth_small.yaml")
    assert str(ckpt) in line and "does not fit" in line


def test_truncated_checkpoint(cli, command, ckpt, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(ckpt.read_bytes()[:5000])
    assert "cut.safetensors" in cli.refused("inference", *command(tmp_path / "out"), "--ckpt", cut)


def test_empty_list(cli, command, tmp_path):
    empty = tmp_path / "none.json"
    empty.write_text("")
    assert "none.json" in cli.refused("inference", *command(tmp_path / "out"), "--txt-file", empty)


def test_a_full_disk_leaves_no_image_cut_off(command, tmp_path):
    # a file-size limit of 2 kB stands for a full disk: the image does not fit, the record would
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    out = tmp_path / "out"
    assert Command(Path(os.devnull), "inference", *command(out, "--size", "64"), prepare=small_disk).wait() != 0
    assert not list(out.glob("*.png"))

"""A folder of images holds what its command says: what is there and made of something else is named, or made again."""

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from common.files import file_hash
from tests.synthesis.conftest import close, images, records

ITEM, SAMPLE = "train_0002", "train_0002_seed_5"


@pytest.fixture
def folder(made, scenes, tmp_path):
    """A copy of the images and of the data that they were made of."""
    shutil.copytree(made, tmp_path / "out")
    shutil.copytree(scenes, tmp_path / "data")
    return tmp_path / "out"


@pytest.fixture
def again(command, folder, tmp_path):
    """The arguments that made the folder, for the copies."""
    data = tmp_path / "data"

    def build(*more):
        return command(
            folder,
            "--data-root",
            data,
            "--txt-file",
            data / "inference_set_items.json",
            "--classes",
            data / "classes.json",
            *more,
        )

    return build


def change_item(data, **fields):
    path = data / "inference_set_items.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if ITEM in line["source"]:
            line.update(fields)
    path.write_text("\n".join(map(json.dumps, lines)))


def change_picture(path, turn=2):
    Image.fromarray(np.rot90(np.array(Image.open(path)), turn)).save(path)


def change_record(folder, **fields):
    lines = records(folder)
    for line in lines:
        if line["name"] == SAMPLE:
            line.update(fields)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_same_command_finds_all_images_though_data_moved(cli, again, folder):
    assert "8 images are in" in cli("inference", *again("--batch-size", "3"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "48"], "height 32, not 48"),
        (["--precision", "bf16"], "precision 32, not bf16"),
        (["--format", "jpg"], "format png, not jpg"),
        (["--spacing", "trailing"], "spacing leading, not trailing"),
        (["--reference-fit", "stretch"], "reference_fit crop, not stretch"),
        (["--ddim-eta", "0.5"], "eta 0.0, not 0.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_options_are_refused_by_name(cli, again, folder, options, says):
    before = images(folder)
    line = cli.refused("inference", *again(*options))
    assert f"train_0000_seed_5 there was made with {says} (so are 7 more)" in line and "--remake" in line
    assert images(folder).keys() == before.keys() and len(records(folder)) == 8


@pytest.mark.parametrize(
    "what", ["prompt", "reference", "mask", "other reference", "record", "old record", "cut record", "twice", "weights"]
)
def test_an_image_made_of_something_else_is_refused_by_name(cli, again, folder, tmp_path, ckpt, what):
    data, more, says = tmp_path / "data", (), what
    if what == "prompt":
        change_item(data, prompt="in winter, covered by snow")
        says = "not 'in winter, covered by snow'"
    elif what == "reference":
        item = next(
            json.loads(line) for line in (data / "inference_set_items.json").read_text().splitlines() if ITEM in line
        )
        change_picture(data / item["ref_image"])
        says = "another reference than"
    elif what == "mask":
        change_picture(data / "label_train" / f"{ITEM}.png")
        says = "another mask than"
    elif what == "other reference":
        other = data / "ref_img" / "new.jpg"
        Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(other)
        change_item(data, ref_image="ref_img/new.jpg")
        says = "another reference than"
    elif what == "record":
        lines = [line for line in (folder / "samples.jsonl").read_text().splitlines() if SAMPLE not in line]
        (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
        says = "has no record"
    elif what == "old record":
        change_record(folder, reference_hash=None)
        says = "does not say its reference_hash"
    elif what == "cut record":
        path = folder / "samples.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*(line for line in lines if SAMPLE not in line), lines[2][:40]]))
        says = "has no record"
    elif what == "twice":
        (folder / f"{SAMPLE}.JPG").write_bytes(b"")
        says = f"is there twice, {SAMPLE}.JPG and {SAMPLE}.png"
    elif what == "weights":
        more = ("--ckpt", tmp_path / "other.safetensors")
        more[1].write_bytes(ckpt.read_bytes()[:-4] + b"\0\0\0\0")
        says = "checkpoint_hash"
    line = cli.refused("inference", *again(*more))
    assert says in line and (f"{SAMPLE} there" in line or what in ("reference", "weights")) and "--remake" in line


def test_remake_makes_again_what_differs_and_nothing_else(cli, again, command, folder, tmp_path):
    change_item(tmp_path / "data", prompt="in winter, covered by snow")
    (folder / "train_0005_seed_5.png").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    before = images(folder)
    assert "2 to make, 1 of them again" in cli("inference", *again("--remake"))
    changed = {path.name for path in folder.glob("*.png") if path.stat().st_mtime_ns != times.get(path.name)}
    assert changed == {f"{SAMPLE}.png", "train_0005_seed_5.png"} and len(records(folder)) == 8
    assert not close(images(folder)[f"{SAMPLE}.png"], before[f"{SAMPLE}.png"])
    assert "8 images are in" in cli("inference", *again())


def test_a_folder_holds_one_file_an_image_whatever_the_format(cli, again, folder):
    one = ("--only", SAMPLE)
    cli("inference", *again("--format", "jpg", *one))
    assert {path.name for path in folder.glob(f"{SAMPLE}*")} == {f"{SAMPLE}.jpg"}
    assert "format jpg, not png" in cli.refused("inference", *again())
    cli("inference", *again("--remake"))
    assert {path.name for path in folder.glob(f"{SAMPLE}*")} == {f"{SAMPLE}.png"}


def test_the_quality_of_jpegs_is_compared(cli, again, scenes, tmp_path):
    one = tmp_path / "one.json"
    one.write_text((scenes / "inference_set_items.json").read_text().splitlines()[2])
    options = ("--txt-file", one, "--format", "jpg", "--outdir", tmp_path / "jpg")
    cli("inference", *again(*options, "--quality", "50"))
    assert f"{SAMPLE} there was made with quality 50, not 95" in cli.refused("inference", *again(*options))


def test_what_a_kill_left_is_tidied_up_though_all_images_are_there(cli, again, folder):
    lines = (folder / "samples.jsonl").read_text().splitlines()
    (folder / "samples.rank1.jsonl").write_text("\n".join(lines[:3]) + "\n")
    (folder / "samples.jsonl").write_text("\n".join([*lines[3:], *lines[5:]]) + "\n")
    (folder / ".train_0002_seed_5.x.tmp.png").write_bytes(b"cut off")
    assert "0 to make" in cli("inference", *again())
    assert [line["name"] for line in records(folder)] == [f"train_{i:04d}_seed_5" for i in range(8)]
    assert not list(folder.glob("samples.rank*")) and not list(folder.glob(".*.tmp.*"))


def test_a_full_disk_is_one_line_at_every_start(cli, again, folder, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    cli("inference", *again())  # sorts the records
    monkeypatch.setattr("common.journal.atomic_path", full)
    assert "0 to make" in cli("inference", *again())  # nothing to write
    lines = (folder / "samples.jsonl").read_text().splitlines()
    (folder / "samples.rank1.jsonl").write_text(lines[0] + "\n")
    for _ in range(2):
        assert "disk full" in (line := cli.refused("inference", *again())) or "No space left" in line
    assert (folder / "samples.jsonl").read_text().splitlines() == lines


def test_a_batch_that_does_not_fit_is_one_line(cli, again, tmp_path, monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 ...")

    monkeypatch.setattr("cldm.synthesis.run.paint", too_much)
    assert "--batch-size 8: a batch does not fit" in cli.refused("inference", *again("--outdir", tmp_path / "new"))


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b'{"name": "../x"}',
        b'{"name": "/x"}',
        b'{"name": "a\\nb"}',
        b'{"name": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 99999,
        b'{"name": "x", "scale": NaN}',
        b'{"name": "x", "mask": 5}',
        b'{"name": "a", "name": "b"}',
        b'{"name": "x", "steps": "3"}',
    ],
    ids=range(11),
)
def test_damaged_records_are_named_with_their_line(cli, again, folder, scenes, tmp_path, line):
    path = folder / "samples.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert f"{path}: line 9" in cli.refused("inference", *again())
    said = cli.refused(
        "contact_sheet",
        "--samples",
        folder,
        "--data-root",
        scenes,
        "--items",
        scenes / "inference_set_items.json",
        "--classes",
        scenes / "classes.json",
        "--out",
        tmp_path / "sheet.png",
    )
    assert f"{path}: line 9" in said and not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("items", ["5", '{"source": 5}', '{"source": "a.png", "target": []}', "[" * 99999, "\ud800"])
def test_a_list_that_is_none_is_refused_by_the_contact_sheet(cli, folder, scenes, tmp_path, items):
    path = tmp_path / "items.json"
    path.write_bytes(items.encode(errors="surrogatepass"))
    assert str(path) in cli.refused(
        "contact_sheet",
        "--samples",
        folder,
        "--data-root",
        scenes,
        "--items",
        path,
        "--classes",
        scenes / "classes.json",
        "--out",
        tmp_path / "s.png",
    )


@pytest.mark.parametrize("name", ["a\nb", ".hidden", "x" * 240, "a\x7fb"])
def test_masks_whose_names_are_no_names_of_images(cli, again, folder, tmp_path, name):
    mask = tmp_path / "data" / "label_train" / f"{name}.png"
    shutil.copyfile(tmp_path / "data" / "label_train" / f"{ITEM}.png", mask)
    change_item(tmp_path / "data", source=f"label_train/{name}.png")
    assert "line 3" in cli.refused("inference", *again())


@pytest.mark.parametrize("how", ["vanished", "killed"])
def test_a_data_worker_that_fails_is_one_line(cli, again, tmp_path, monkeypatch, how):
    def broken(path):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        path.unlink()
        return file_hash(path)

    monkeypatch.setattr("cldm.synthesis.run.file_hash", broken)
    get = "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__"
    monkeypatch.setattr(get, (0.2,))  # how often torch looks whether its workers live
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # and waits for their end
    line = cli.refused("inference", *again("--num-workers", "1", "--outdir", tmp_path / "new"))
    assert ("png: cannot be read (No such file" if how == "vanished" else "a process that reads items") in line
    assert not list((tmp_path / "new").glob("*.png"))

"""What one command takes, every command takes; what one refuses, every command refuses, by name."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from common.bands import see_any
from common.errors import InputError
from tests.conftest import SMALL
from tests.odd_files import FILES, IDS, PIXELS, encoded
from tests.segmentation import pixel_backbone

PLAIN = {"img": (".png", encoded(PIXELS)), "label": (".png", encoded(IDS))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pairs with an odd file each, those to take below ``good``, those to refuse below ``bad``; a segmentor."""
    root = tmp_path_factory.mktemp("odd")
    counts, lines = {"good": 0, "bad": 0}, {"good": [], "bad": []}
    for number, (suffix, data, *says) in enumerate(FILES.values()):
        for kind, refused in zip(("img", "label"), says, strict=True):
            if kind == "label" and suffix == ".jpg":  # JPEGs are not looked for in a folder of masks
                continue
            where, name = "good" if refused is None else "bad", f"{kind[0]}{number}"
            counts[where] += 1
            paths = []
            for part in ("label", "img"):
                end, content = (suffix, data) if part == kind else PLAIN[part]
                paths.append(f"{where}/{part}/{name}{end.upper() if number % 2 else end}")
                path = root / paths[-1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            lines[where].append({"source": paths[0], "target": paths[1], "ref_image": paths[1], "prompt": "p"})
    for where, items in lines.items():
        (root / f"{where}.json").write_text("\n".join(map(json.dumps, items)))
    table = root / "classes.json"
    table.write_text(json.dumps({"classes": list("abcde"), "palette": [[9 * i + 9, 0, 0] for i in range(5)]}))
    config = pixel_backbone.write_config(root / "config.py", 5, str(table))
    weights = {"weight": torch.eye(5, 3)[..., None, None], "bias": torch.zeros(5)}
    torch.save({"state_dict": {f"decode_head.conv_seg.{key}": value for key, value in weights.items()}}, root / "w.pth")
    return SimpleNamespace(root=root, table=table, config=config, counts=counts)


def arguments(world, command, where, out, ckpt):
    root, folder = world.root, world.root / where
    img, label = folder / "img", folder / "label"
    prefixes = [
        f"test_dataloader.dataset.data_prefix.{key}={value}"
        for key, value in (("img_path", "img"), ("seg_map_path", "label"))
    ]
    lists = ["--data-root", root, "--gpus", "cpu", "--dry-run"]
    return {
        "train": [
            "--config-model",
            SMALL,
            "-n",
            "run",
            "-l",
            out,
            *lists,
            "--train-txt-file",
            root / f"{where}.json",
            "--val-txt-file",
            root / f"{where}.json",
            f"model.params.classes={world.table}",
        ],
        "inference": [
            "--config",
            SMALL,
            "--ckpt",
            ckpt,
            *lists,
            "--txt-file",
            root / f"{where}.json",
            "--outdir",
            out,
            "--classes",
            world.table,
            "--format",
            "png",
        ],
        "filter": [
            world.config,
            root / "w.pth",
            "--real-img-path",
            img,
            "--real-label-path",
            label,
            "--syn-img-path",
            img,
            "--syn-mask-path",
            label,
            "--filtered-mask-path",
            out / "filtered",
            "--device",
            "cpu",
        ],
        "evaluate_samples": [
            world.config,
            root / "w.pth",
            "--real-img-path",
            img,
            "--real-label-path",
            label,
            "--syn-img-path",
            img,
            "--syn-mask-path",
            label,
            "--train-img-path",
            img,
            "--out-dir",
            out / "evaluation",
            "--device",
            "cpu",
        ],
        "resample": ["--filtered-mask-path", label, "--syn-img-path", img, "--out-dir", out, "--classes", world.table],
        "segmentor": [
            "test",
            world.config,
            "--load-from",
            root / "w.pth",
            "--data-root",
            folder,
            "--work-dir",
            out,
            "--cfg-options",
            *prefixes,
        ],
    }[command]


@pytest.mark.parametrize("command", ["train", "inference", "filter", "evaluate_samples", "resample", "segmentor"])
def test_all_commands_take_and_refuse_the_same_files(cli, world, ckpt, tmp_path, command):
    cli(command, *arguments(world, command, "good", tmp_path, ckpt))
    line = cli.refused(command, *arguments(world, command, "bad", tmp_path / "bad", ckpt))
    more = re.search(r"; and (\d+) more", line)
    faults = int(more[1]) + (10 if command in ("train", "inference") else 5)
    # re-sampling copies images, whatever the range of their numbers and however many bands
    taken = sum(map(is_taken, (world.root / "bad" / "img").glob("i*"))) if command == "resample" else 0
    assert faults == world.counts["bad"] - taken, line
    assert command != "resample" or taken > 5
    assert not [path for path in (tmp_path / "bad").rglob("*") if path.is_file() and path.name != ".lock"]


def is_taken(path):
    try:
        see_any(path)
    except InputError:
        return False
    return True


def test_a_turned_file_is_said_once(cli, world, ckpt, tmp_path):
    for command in ("filter", "train"):
        said = [
            line
            for line in cli(command, *arguments(world, command, "good", tmp_path / command, ckpt)).splitlines()
            if "EXIF tag" in line and "used as stored" in line
        ]
        assert len(said) == 2  # real and synthesized pairs, training and validation


def test_pixels_of_a_re_sampled_tiff(cli, world, tmp_path):
    """An image of another size than its mask is brought to it, in its own format."""
    for name, pixels in (("img/a.TIF", PIXELS[:20, :20]), ("mask/a.tif", IDS)):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(pixels).save(tmp_path / name)
    cli(
        "resample",
        "--filtered-mask-path",
        tmp_path / "mask",
        "--syn-img-path",
        tmp_path / "img",
        "--out-dir",
        tmp_path / "out",
        "--classes",
        world.table,
    )
    assert Image.open(tmp_path / "out/resampled_img/a.TIF").size == IDS.shape
    assert (np.array(Image.open(tmp_path / "out/resampled_label/a.tif")) == IDS).all()


@pytest.mark.parametrize("command", ["train", "inference"])
def test_links_out_of_the_data_root(cli, world, ckpt, tmp_path, command):
    root = tmp_path / "root"
    root.mkdir()
    for kind in ("img", "label"):
        (root / kind).symlink_to(world.root / "good" / kind)
    lines = (world.root / "good.json").read_text().replace("good/", "").splitlines()
    (root / "list.json").write_text("\n".join(lines[:4]))
    given = [
        str(part).replace(f"{world.root}/good.json", f"{root}/list.json")
        for part in arguments(world, command, "good", tmp_path / "out", ckpt)
    ]
    given[given.index("--data-root") + 1] = str(root)
    line = cli.refused(command, *given)
    assert f"leads by a link to {world.root}/good/" in line and "--follow-links" in line
    cli(command, *given, "--follow-links")

"""Files of weights, mutated: each command takes those whose weights are as they were, and refuses others in one line.

A mutation changes the file's bytes, the bytes of the pickle in it (with sums and sizes that agree), or what was saved.
"""

import io
import pickle
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save

from cldm.build import create_model
from gss.dvae import DVAE
from ldm.checkpoint import read_state_dict
from tests.conftest import SMALL
from tests.faults.mutate import ODD_VALUES, command, mutate_bytes, mutate_tree, observe
from tests.gss.conftest import TINY
from tests.segmentation.conftest import build_chain

ODD = (
    *ODD_VALUES,
    torch.zeros(2, 2),
    torch.tensor(float("nan")),
    torch.ones(3, dtype=torch.int8),
    np.zeros(3),
    np.float64(2),
    OrderedDict(),
    torch.empty(0),
    b"bytes",
    (1, 2),
)


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def in_the_pickle(data, rng):
    """Mutates the pickle of a zip file, and packs it again as if nothing had happened."""
    out, what = io.BytesIO(), ""
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                what, content = mutate_bytes(content, rng)
            new.writestr(entry.filename, content)
    return f"pickle: {what}", out.getvalue()


def mutated(content, rng):
    """What was done; the file; whether each change of the weights in it can be seen from its checksums."""
    how = rng.choice(("zip", "older", "safetensors", "pickle", "pickle", "tree", "tree", "tree"))
    if how == "zip":
        return *mutate_bytes(saved(content, pickle_protocol=rng.choice((2, 4))), rng), True
    if how == "older":
        return *mutate_bytes(saved(content, _use_new_zipfile_serialization=False), rng), False
    if how == "safetensors":
        return *mutate_bytes(save(dict(content["state_dict"])), rng), False
    if how == "pickle":
        return *in_the_pickle(saved(content, pickle_protocol=rng.choice((2, 4))), rng), False
    what, tree = mutate_tree(content, rng, ODD)
    try:
        return what, saved(tree), False
    except (pickle.PicklingError, ValueError, UnicodeError, RecursionError) as error:
        return f"{what}, which cannot be saved", str(error).encode(errors="replace"), False


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The content of three good files of weights, by kind, and by kind the commands that read them."""
    root = tmp_path_factory.mktemp("weights")
    chain = build_chain(root)
    torch.manual_seed(0)
    segmentor = torch.load(chain.weights, weights_only=True)
    ended = observe(command("segmentor", "train", chain.config, "--work-dir", root / "trained"))
    assert ended.kind == "accepted", ended
    training = torch.load(root / "trained" / "iter_2.pth", weights_only=False)
    content = {
        "model": {"state_dict": OrderedDict(create_model(SMALL).state_dict()), "epoch": 3},
        "segmentor": {**segmentor, "meta": {"dataset_meta": {"classes": list("abcde")}, "iter": 2}},
        "training": training,
        "dvae": {"state_dict": {f"decode_head.d_vae.{k}": v for k, v in DVAE(**TINY).state_dict().items()}},
    }
    images = [
        "--real-img-path",
        root / "img_train",
        "--real-label-path",
        root / "label_train",
        "--syn-img-path",
        root / "syn",
        "--syn-mask-path",
        root / "label_train",
        "--num-workers",
        0,
        "--device",
        "cpu",
    ]
    commands = {
        "model": lambda path, out: ["init_checkpoint", "--config", SMALL, "--source", path, "--out", out / "x.ckpt"],
        "segmentor": lambda path, out: ["filter", chain.config, path, *images, "--filtered-mask-path", out / "x"],
        "training": lambda path, out: [
            "segmentor",
            "train",
            chain.config,
            "--resume",
            "--load-from",
            path,
            "--max-iters",
            3,
            "--work-dir",
            out / "x",
            "--unchecked",
        ],
        "dvae": lambda path, out: ["convert_dvae", "--checkpoint", path, "--out", out / "x.safetensors"],
    }
    return content, commands


@pytest.mark.parametrize("kind", ["model", "segmentor", "training", "dvae"])
def test_mutated_weights(files, kind, request, tmp_path):
    content, commands = files[0][kind], files[1][kind]
    count = request.config.getoption("--mutations") or 16
    rng = random.Random(f"{kind} {request.config.getoption('--seed')}")
    taken = 0
    for round_ in range(count):
        what, data, sums = mutated(content, rng)
        path, out = tmp_path / f"{round_}.pth", tmp_path / str(round_)
        path.write_bytes(data)
        ending = observe(command(*commands(path, out)), seconds=30)
        assert ending.fine, f"{kind} {round_}: {what}: {ending}"
        taken += ending.kind == "accepted"
        if ending.kind == "refused":
            assert not list(out.glob("x.*")), what
        elif sums and kind == "model":
            made = read_state_dict(out / "x.ckpt")
            assert all(torch.equal(value, made[key]) for key, value in content["state_dict"].items()), what
        path.unlink()
    assert 0 < taken < count

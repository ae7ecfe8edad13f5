"""Several processes without GPUs: the scores and weights of one, as those of several GPUs."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from common.devices import visible_gpus
from evaluation import runs
from scripts import segmentor
from segmentation import prediction
from tests.children import in_processes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture
def chain(make_chain):
    """Four training images of the size of crops, so that augmentation changes nothing."""
    chain = make_chain()
    rng = np.random.default_rng(1)
    for part, shape in (("img", (16, 16, 3)), ("label", (16, 16))):
        for path in (chain.root / f"{part}_train").iterdir():
            path.unlink()
        for index in range(4):
            pixels = rng.integers(0, 5, shape, dtype=np.uint8) * (40 if part == "img" else 1)
            Image.fromarray(pixels).save(chain.root / f"{part}_train/{index}.png")
    return chain


def test_two_processes_give_the_scores_of_one(chain):
    def run(folder):
        segmentor.main(
            [
                "test",
                str(chain.config),
                "--load-from",
                str(chain.weights),
                "--confusion",
                "--work-dir",
                str(chain.root / folder),
            ]
        )

    assert in_processes(1, lambda: run("one")) == [0]
    assert in_processes(2, lambda: run("two")) == [0, 0]
    for name in ("metrics.json", "metrics_confusion.json"):  # of 3 images: one process takes one more than the other
        one, two = (json.loads((chain.root / folder / name).read_text()) for folder in ("one", "two"))
        assert one == two


def test_two_processes_of_half_the_batch_give_the_weights_of_one(chain):
    def run(folder, batch_size, *norm):
        segmentor.main(
            [
                "train",
                str(chain.config),
                "--work-dir",
                str(chain.root / folder),
                "--cfg-options",
                f"train_dataloader.batch_size={batch_size}",
                *norm,
            ]
        )

    assert in_processes(2, lambda: run("two", 2)) == [0, 0]
    assert in_processes(1, lambda: run("one", 4)) == [0]
    one, two = (torch.load(chain.root / folder / "iter_2.pth", weights_only=False) for folder in ("one", "two"))
    assert list(two["state_dict"]) == list(one["state_dict"])
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    assert in_processes(
        2, lambda: run("norm", 2, "model.decode_head.num_convs=1", "model.decode_head.norm_cfg.type=SyncBN")
    ) == [0, 0]


def test_two_processes_predict_what_one_does(chain, monkeypatch):
    """One of them does not see the first image yet, as another machine may not; both take the first one's list."""
    look = prediction.images_of

    def run(folder):
        late = int(os.environ["RANK"])
        monkeypatch.setattr(prediction, "images_of", lambda path: dict(list(look(path).items())[late:]))
        segmentor.main(
            [
                "predict",
                str(chain.config),
                "--load-from",
                str(chain.weights),
                "--images",
                str(chain.root / "img_test"),
                "--out",
                str(chain.root / folder),
                "--num-workers",
                "0",
            ]
        )

    assert in_processes(2, lambda: run("two")) == [0, 0]
    assert in_processes(1, lambda: run("one")) == [0]
    masks = [path.name for path in (chain.root / "one/masks").iterdir()]
    assert len(masks) == 3
    assert all(
        (chain.root / "one/masks" / name).read_bytes() == (chain.root / "two/masks" / name).read_bytes()
        for name in masks
    )
    assert (chain.root / "one/predicted.jsonl").read_bytes() == (chain.root / "two/predicted.jsonl").read_bytes()


def test_a_task_of_slurm_rehearses_on_its_own_gpu(monkeypatch, chain):
    from scripts.segmentor import read_options

    words = ["train", str(chain.config), "--launcher", "slurm"]
    monkeypatch.setenv("SLURM_LOCALID", "3")
    for given, taken in ((words, "3"), ([*words[:2], "--local-rank", "1"], "1")):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        read_options(given)
        assert os.environ["LOCAL_RANK"] == taken


@pytest.mark.parametrize(
    ("named", "count", "seen"),
    [(None, 0, []), (None, 2, ["0", "1", "0"]), ("5,GPU-7", 2, ["5", "GPU-7", "5"]), ("", 0, [])],
)
def test_trainings_at_once_are_dealt_out_to_the_gpus(monkeypatch, named, count, seen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    turns, told = itertools.cycle(visible_gpus()), []
    for _ in range(3):
        runs._take_gpu(turns)
        told.append(runs._thread.sees)
    assert told == ([{"CUDA_VISIBLE_DEVICES": gpu} for gpu in seen] or [{}] * 3)

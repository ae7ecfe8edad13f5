"""GSS in two processes without GPUs: training, and the scores of one process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import segmentor
from tests.children import in_processes

CONFIGS = Path(__file__).resolve().parents[2] / "configs/gss"
CONFIG = CONFIGS / "ff_tiny_mbrsc.py"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture
def data(tmp_path):
    for split in ("train", "test"):
        for kind in ("img", "label"):
            (tmp_path / f"{kind}_{split}").mkdir()
        for index in range(3):
            mask = np.zeros((64, 64), dtype=np.uint8)
            mask[:, 20 + 10 * index :] = 4
            Image.fromarray(mask).save(tmp_path / f"label_{split}/{index}.png")
            Image.fromarray(np.repeat(60 * mask[..., None], 3, axis=-1)).save(tmp_path / f"img_{split}/{index}.png")
    return tmp_path


def metrics(*folders):
    return [json.loads((folder / "metrics.json").read_text()) for folder in folders]


def test_two_processes_test_what_has_nothing_to_train(data, tiny_weights):
    def run(folder):
        words = ["test", CONFIGS / "reconstruction_mbrsc.py", "--data-root", data, "--work-dir", data / folder]
        weights = f"model.decode_head.d_vae.weights={tiny_weights}"
        segmentor.main([*map(str, words), "--cfg-options", "test_dataloader.num_workers=0", weights])

    for count, folder in ((2, "two"), (1, "one")):
        assert in_processes(count, lambda folder=folder: run(folder)) == [0] * count
    one, two = metrics(data / "one", data / "two")
    assert one == two and one["images"] == 3


def test_two_processes_train_gss_and_give_the_scores_of_one(data, tiny_weights):
    def run(task, folder, *options):
        segmentor.main(
            [
                task,
                str(CONFIG),
                "--data-root",
                str(data),
                "--work-dir",
                str(data / folder),
                *map(str, options),
                "--crop-size",
                "32",
                "--cfg-options",
                "train_dataloader.batch_size=2",
                "train_dataloader.num_workers=0",
                "test_dataloader.num_workers=0",
                "test_dataloader.dataset.pipeline.1.scale=(64,64)",
                "train_dataloader.dataset.pipeline.2.scale=(64,64)",
                f"model.decode_head.d_vae.weights={tiny_weights}",
                "log_level=ERROR",
            ]
        )

    assert in_processes(2, lambda: run("train", "work", "--max-iters", 2, "--val-split", "test")) == [0, 0]
    weights = data / "work/iter_2.pth"
    assert weights.is_file() and list((data / "work").glob("best_mIoU_iter_*.pth"))
    for count, folder in ((2, "two"), (1, "one")):
        assert in_processes(count, lambda folder=folder: run("test", folder, "--load-from", weights)) == [0] * count
    one, two = metrics(data / "one", data / "two")
    assert one == two

"""GSS-FF, then GSS-FT-W from its weights, then a test, all through scripts/segmentor.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from gss.weights import read_state_dict
from scripts import segmentor

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "gss"


@pytest.fixture
def data(tmp_path):
    """Three images of two halves, each half one color and one class."""
    for split in ("train", "test"):
        for kind in ("img", "label"):
            (tmp_path / f"{kind}_{split}").mkdir()
        for i in range(3):
            mask = np.zeros((128, 128), dtype=np.uint8)
            mask[:, 40 + 20 * i :] = 4
            Image.fromarray(mask).save(tmp_path / f"label_{split}" / f"{i}.png")
            image = np.stack([60 * mask, 255 - 60 * mask, mask], axis=-1).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"img_{split}" / f"{i}.jpg")
    return tmp_path


def test_ff_then_ftw_then_test(data, tiny_weights, cli):
    def run(task, name, *options, iterations=2, **more):
        """A dVAE is named for the first training alone: later ones have it in the checkpoint."""
        work = data / name
        values = {
            **more,
            "train_dataloader.batch_size": 2,
            "test_dataloader.dataset.pipeline.1.scale": "(64,64)",
            "train_dataloader.dataset.pipeline.2.scale": "(64,64)",
            "train_dataloader.dataset.pipeline.3.crop_size": "(32,32)",
            "model.data_preprocessor.size": "(32,32)",
            "param_scheduler.0.end": 1,
            "param_scheduler.1.begin": 1,
        }
        segmentor.main(
            [
                task,
                str(CONFIGS / f"{name}_tiny_mbrsc.py"),
                "--data-root",
                str(data),
                "--work-dir",
                str(work),
                "--max-iters",
                str(iterations),
                *map(str, options),
                "--cfg-options",
                *(f"{key}={value}" for key, value in values.items()),
            ]
        )
        return work

    with pytest.raises(InputError, match=r"dvae_mbrsc\.safetensors: no such file; .* start from a GSS checkpoint"):
        run("train", "ff")
    with pytest.raises(InputError, match=r"no dVAE: the config names none; set d_vae.weights"):
        run("train", "ff", **{"model.decode_head.d_vae.weights": None})
    ff = run("train", "ff", **{"model.decode_head.d_vae.weights": tiny_weights}) / "iter_2.pth"
    ftw = run("train", "ft-w", "--load-from", ff) / "iter_2.pth"
    start, end = read_state_dict(ff), read_state_dict(ftw)
    kept = [key for key in end if key in start]
    assert len(kept) > 100 and all(torch.equal(start[key], end[key]) for key in kept)
    assert any("projection" in key for key in set(end) - set(start))

    run("test", "ft-w", "--load-from", ftw, "--out", data / "metrics.json")
    report = json.loads((data / "metrics.json").read_text())
    assert 0 <= report["mIoU"] <= 1 and report["images"] == 3

    merged = data / "merged.pth"  # by the published merge, FF's branch for pixels is left over
    cli("merge_gss", "--ff", ff, "--ftw", ftw, "--out", merged, "--backbone-type", "swin")
    assert any("conv_seg_pixel" in key for key in read_state_dict(merged))
    run("test", "ft-w", "--load-from", merged, "--out", data / "merged.json")
    again = json.loads((data / "merged.json").read_text())
    assert again["classes"] == report["classes"]

    bare = {"state_dict": {key: value for key, value in end.items() if "d_vae" not in key}}
    torch.save(bare, data / "bare.pth")
    with pytest.raises(InputError, match=r"the config names none, and .*bare\.pth holds none"):
        run("test", "ft-w", "--load-from", data / "bare.pth", **{"model.decode_head.d_vae.weights": None})

    cli(
        "filter",
        CONFIGS / "ft-w_tiny_mbrsc.py",
        merged,
        "--real-img-path",
        data / "img_train",
        "--real-mask-path",
        data / "label_train",
        "--syn-img-path",
        data / "img_test",
        "--syn-mask-path",
        data / "label_test",
        "--filtered-mask-path",
        data / "filtered",
        "--device",
        "cpu",
        "--num-workers",
        0,
    )
    assert len(list((data / "filtered").glob("*.png"))) == 3

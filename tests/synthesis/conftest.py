"""Weights and images that the tests of synthesis share."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.build import create_model
from ldm.checkpoint import save_state_dict
from tests.children import Command
from tests.conftest import SMALL


@pytest.fixture(scope="session")
def ckpt(scenes, tmp_path_factory):
    """Weights that make images depend on everything: none of the zero initializations is left."""
    torch.manual_seed(0)
    model = create_model(SMALL, classes=str(scenes / "classes.json"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith(("first_stage", "cond_stage")) and not p.any():
                p.copy_(torch.randn_like(p) * 0.1)
    path = tmp_path_factory.mktemp("ckpt") / "small.safetensors"
    save_state_dict(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def command(scenes, ckpt):
    def build(outdir, *more):
        return [
            "--config",
            SMALL,
            "--ckpt",
            ckpt,
            "--data-root",
            scenes,
            "--gpus",
            "cpu",
            "--outdir",
            outdir,
            "--txt-file",
            scenes / "inference_set_items.json",
            "--classes",
            scenes / "classes.json",
            "--ddim-steps",
            "3",
            "--scale",
            "2",
            "--seed",
            "5",
            "--format",
            "png",
            "--num-workers",
            "0",
            *more,
        ]

    return build


@pytest.fixture(scope="session")
def made(command, tmp_path_factory):
    """The images of seed 5, made in batches of 8 by the command line, with its usual processes that read items."""
    out = tmp_path_factory.mktemp("made")
    run = Command(out.with_suffix(".log"), "inference", *command(out, "--num-workers", 2))
    assert run.wait() == 0, run.said()
    return out


def images(folder):
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("[!.]*.png"))}


def records(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def close(a, b):
    """Equal but for the rounding of other matrix sizes: one gray level in a few pixels."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() < 0.01

"""The notebook runs from its first cell to its last, in a process of its own, with trainings of a few steps."""

import json
import os
import subprocess
import sys

import numpy as np

from common.images import read_image, read_mask
from tests.conftest import ROOT

NOTEBOOK = ROOT / "demo" / "first_steps.ipynb"


def cells():
    """The notebook's code."""
    book = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path):
    settings = {"STEPS": "2", "COUNT": "2", "OUT": str(tmp_path), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(cells())],
        cwd=NOTEBOOK.parent,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    images = sorted((tmp_path / "images").glob("*.jpg"))
    assert len(images) == 2 and ended.stdout.count("of the pixels are kept") == 2
    for path in images:
        kept, mask = (
            read_mask(tmp_path / folder / f"{name}.png")
            for folder, name in (("filtered", path.stem), ("data/label_train", path.stem.split("_seed_")[0]))
        )
        assert read_image(path).shape == (*kept.shape, 3)
        assert np.array_equal(kept[kept != 255], mask[kept != 255])


def test_the_notebook_is_kept_without_outputs():
    book = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in book["cells"])

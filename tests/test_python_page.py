"""The page on calls from Python: each piece of its code runs, with tiny weights and fewer steps."""

import re

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from cldm.build import create_model
from cldm.diffusers_export.export import export
from cldm.diffusers_export.options import ExportOptions
from common.classes import load_class_table
from common.images import read_mask
from ldm.checkpoint import save_state_dict
from tests.conftest import ROOT, SMALL
from tests.segmentation.pixel_backbone import write_config

FEWER = {
    "    steps=20,\n": "    steps=2, num_workers=0,\n",
    "steps=20": "steps=2",
    'real_label_path="data/label_train",': 'real_label_path="data/label_train", num_workers=0, device="cpu",',
}


def pieces():
    """The page's code, by its headings."""
    page = (ROOT / "docs" / "python.md").read_text()
    return dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", page, re.S | re.M))


def run(code):
    assert "=20" in code  # what is replaced is there
    for written, taken in FEWER.items():
        code = code.replace(written, taken)
    exec(compile(code, "docs/python.md", "exec"), {"__name__": "__main__"})


def test_the_pages_code_runs(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "data").symlink_to(scenes)
    config = OmegaConf.load(SMALL)
    config.model.params.classes = "data/classes.json"
    OmegaConf.save(config, "model.yaml")
    torch.manual_seed(0)
    save_state_dict(create_model("model.yaml").state_dict(), "model.safetensors")
    count = len(load_class_table("data/classes.json"))
    head = {"weight": torch.randn(count, 3, 1, 1), "bias": torch.randn(count)}
    torch.save({"state_dict": {f"decode_head.conv_seg.{name}": value for name, value in head.items()}}, "segmentor.pth")
    write_config(tmp_path / "segmentor.py", count, "data/classes.json", "data")

    code = pieces()
    assert len(code["Load, paint, filter"].replace(",\n", ", ").splitlines()) <= 10
    run(code["Load, paint, filter"])
    painted = sorted((tmp_path / "painted").glob("[!.]*.jpg"))
    assert painted and all((read_mask(f"filtered/{path.stem}.png") < 256).all() for path in painted)
    run(code["One image, and nothing written"])
    torch.set_grad_enabled(True)
    assert np.asarray(Image.open("one.png")).std() > 1
    words = {"config": "model.yaml", "weights": "model.safetensors", "out": "shared"}
    export(ExportOptions(**words))
    run(code["By diffusers"])
    assert np.asarray(Image.open("made.png")).shape == (64, 64, 3)

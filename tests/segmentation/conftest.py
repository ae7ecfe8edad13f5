import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.segmentation import pixel_backbone
from tests.segmentation.chain import save_pair

SIZES = ((24, 32), (40, 24), (24, 32))


@pytest.fixture
def make_chain(tmp_path):
    """Real pairs of several sizes, two synthesised images a mask, a 1 x 1 segmentor with random weights."""

    def make(num_classes=5):
        rng = np.random.default_rng(num_classes)
        for index, size in enumerate(SIZES):
            for split in ("train", "test"):
                save_pair(rng, tmp_path / f"img_{split}/r{index}.png", tmp_path / f"label_{split}/r{index}.png", size,
                          num_classes)
            for seed in (1, 2):
                save_pair(rng, tmp_path / f"syn/r{index}_seed_{seed}.png", tmp_path / "unused/m.png", size, num_classes)
        table = tmp_path / "classes.json"
        table.write_text(json.dumps({"classes": [f"name {c}" for c in range(num_classes)]}))
        weight = rng.normal(size=(num_classes, 3)).astype(np.float32)
        bias = rng.normal(size=num_classes).astype(np.float32)
        torch.save({"state_dict": {"decode_head.conv_seg.weight": torch.tensor(weight)[..., None, None],
                                   "decode_head.conv_seg.bias": torch.tensor(bias)}}, tmp_path / "weights.pth")
        config = pixel_backbone.write_config(tmp_path / "config.py", num_classes, str(table), str(tmp_path))
        return SimpleNamespace(root=tmp_path, config=config, weights=tmp_path / "weights.pth", weight=weight, bias=bias,
                               num_classes=num_classes, table=table)

    return make


@pytest.fixture
def joint_chain(make_chain):
    """The chain with one re-sampled image."""
    chain = make_chain()
    for folder, name in (("resampled_img", "syn/r0_seed_1.png"), ("resampled_label", "label_train/r0.png")):
        (chain.root / "synth" / folder).mkdir(parents=True)
        shutil.copy(chain.root / name, chain.root / "synth" / folder / "r0_seed_1.png")
    return chain

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.segmentation import pixel_backbone
from tests.segmentation.chain import save_pair

SIZES = ((24, 32), (40, 24), (24, 32))


def build_chain(root, num_classes=5):
    """Real pairs of several sizes, two synthesized images a mask, a 1 x 1 segmentor with random weights."""
    rng = np.random.default_rng(num_classes)
    for index, size in enumerate(SIZES):
        for split in ("train", "test"):
            save_pair(rng, root / f"img_{split}/r{index}.png", root / f"label_{split}/r{index}.png", size, num_classes)
        for seed in (1, 2):
            save_pair(rng, root / f"syn/r{index}_seed_{seed}.png", root / "unused/m.png", size, num_classes)
    table = root / "classes.json"
    table.write_text(json.dumps({"classes": [f"name {c}" for c in range(num_classes)]}))
    weight = rng.normal(size=(num_classes, 3)).astype(np.float32)
    bias = rng.normal(size=num_classes).astype(np.float32)
    torch.save(
        {
            "state_dict": {
                "decode_head.conv_seg.weight": torch.tensor(weight)[..., None, None],
                "decode_head.conv_seg.bias": torch.tensor(bias),
            }
        },
        root / "weights.pth",
    )
    config = pixel_backbone.write_config(root / "config.py", num_classes, str(table), str(root))
    return SimpleNamespace(
        root=root,
        config=config,
        weights=root / "weights.pth",
        weight=weight,
        bias=bias,
        num_classes=num_classes,
        table=table,
    )


@pytest.fixture
def make_chain(tmp_path):
    """See ``build_chain``."""
    return lambda num_classes=5: build_chain(tmp_path, num_classes)


@pytest.fixture
def chain(make_chain):
    """The chain of 5 classes; files whose tests need more of it change it."""
    return make_chain()


@pytest.fixture
def joint_chain(make_chain):
    """The chain with one re-sampled image."""
    chain = make_chain()
    for folder, name in (("resampled_img", "syn/r0_seed_1.png"), ("resampled_label", "label_train/r0.png")):
        (chain.root / "synth" / folder).mkdir(parents=True)
        shutil.copy(chain.root / name, chain.root / "synth" / folder / "r0_seed_1.png")
    return chain

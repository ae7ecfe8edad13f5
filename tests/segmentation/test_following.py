"""How far painted images follow their references: known answers, and the command that says so."""

import json

import numpy as np
import pytest
from PIL import Image

from cldm.synthesis.records import Sample, append_record
from evaluation.following import following, painted_after
from tests.segmentation.chain import evaluate_options


@pytest.mark.parametrize(("share", "slope", "correlation"), [(0.5, 0.5, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_a_known_share_of_the_references_light(tmp_path, share, slope, correlation):
    images = []
    for mask, base in (("a", 40), ("b", 90)):  # what a mask shows has its own light, which says nothing
        for i, light in enumerate((60, 100, 140)):
            reference, painted = tmp_path / f"r{i}.png", tmp_path / f"{mask}_seed_{i}.png"
            Image.fromarray(np.full((4, 6, 3), light, np.uint8)).save(reference)
            Image.fromarray(np.full((8, 8, 3), base + share * light, np.uint8)).save(painted)
            images.append((mask, painted, reference))
    found = following([*images, ("c", images[0][1], images[0][2])], None)  # c: painted after one reference alone
    assert (found["images"], found["masks"]) == (6, 2)
    assert (found["slope"], found["correlation"]) == (pytest.approx(slope), pytest.approx(correlation))
    assert following(images[:1], None) is None


def test_the_command_says_it_where_records_are_there(cli, chain):
    words = ["evaluate_samples", *evaluate_options(chain)]
    assert "references" not in cli(*words)
    for path in sorted((chain.root / "syn").glob("*.png")):
        reference = sorted((chain.root / "img_test").iterdir())[int(path.stem[-1]) % 3]
        append_record(chain.root / "syn", Sample(name=path.stem, seed=0, reference=str(reference)))
    assert "of their references' differences in light" in cli(*words)
    assert json.loads((chain.root / "eval/evaluation.json").read_text())["reference"]["masks"] == 3
    gone = {"r0_seed_1": {"reference": str(chain.root / "no.png")}}
    assert not painted_after(gone, [])

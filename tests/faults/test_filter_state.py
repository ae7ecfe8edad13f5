"""Files that filter.sh and the segmentor write, mutated: refused in one line, or made again as they were."""

import json
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.faults.mutate import command, mutate_bytes, mutate_text, mutate_tree, observe
from tests.segmentation.chain import filter_options, loss_options
from tests.segmentation.conftest import build_chain

FILES = (
    "out/.filter/settings.json",
    "out/.filter/real.jsonl",
    "out/.filter/syn.jsonl",
    "out/r0_seed_1.png",
    "out/filter_stats.json",
    "loss/real_loss.json",
    "loss/r1_seed_1.npy",
    "metrics.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished filter with saved losses, and what its re-use gives."""
    chain = build_chain(tmp_path_factory.mktemp("filter"))
    root = chain.root
    classes = json.loads(chain.table.read_text())["classes"]
    (root / "metrics.json").write_text(
        json.dumps(
            {
                "OA": 0.5,
                "mIoU": 0.25,
                "mAcc": 0.5,
                "classes": {name: {"IoU": 0.1 * c, "Acc": None} for c, name in enumerate(classes)},
                "images": 3,
            }
        )
    )
    for _ in range(2):  # the second finds all done, and joins the records of processes in one file
        ending = observe(command("filter", *filter_options(chain, "--save-loss", root / "loss")))
        assert ending.kind == "accepted", ending
    shutil.copytree(root / "out", root / "whole")
    ending = observe(command("filter", *loss_options(chain)))
    assert ending.kind == "accepted", ending
    return chain


def resample_options(chain):
    return [
        "--filtered-mask-path",
        chain.root / "whole",
        "--syn-img-path",
        chain.root / "syn",
        "--out-dir",
        chain.root / "resampled",
        "--classes",
        chain.table,
        "--metrics",
        chain.root / "metrics.json",
        "--worst",
        2,
        "--num-workers",
        1,
        "--min-valid",
        0.1,
    ]


def masks(folder):
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("[!.]*.png"))}


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def mutated(path, rng):
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        what, tree = mutate_tree(json.loads(data), rng)
        return what, json.dumps(tree).encode(errors="replace")
    if path.suffix == ".jsonl" and rng.random() < 0.5:
        lines = data.splitlines()
        index = rng.randrange(len(lines))
        what, tree = mutate_tree(json.loads(lines[index]), rng)
        lines[index] = json.dumps(tree).encode(errors="replace")
        return f"line {index + 1}: {what}", b"\n".join(lines) + b"\n"
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.5:
        return mutate_text(data.decode(), rng)
    return mutate_bytes(data, rng)


def test_mutated_state(finished, request):
    rng, count = random.Random(request.config.getoption("--seed")), request.config.getoption("--mutations") or 24
    root = finished.root
    for round_ in range(count):
        name = FILES[round_ % len(FILES)]
        path = root / name
        before = path.read_bytes()
        what, after = mutated(path, rng)
        path.write_bytes(after)
        shutil.copy2(path, root / "whole" / path.name) if name == "out/filter_stats.json" else None
        if name.startswith("loss"):
            ending = observe(command("filter", *loss_options(finished, out=f"again_{round_}")))
            if ending.kind == "accepted":
                assert same(masks(root / f"again_{round_}"), masks(root / "again")), f"{name}: {what}"
        elif name in ("metrics.json", "out/filter_stats.json"):
            shutil.rmtree(root / "resampled", ignore_errors=True)
            ending = observe(command("resample", *resample_options(finished)))
        else:
            ending = observe(command("filter", *filter_options(finished, "--save-loss", finished.root / "loss")))
            if ending.kind == "accepted":
                assert same(masks(root / "out"), masks(root / "whole")), f"{name}: {what}"
        assert ending.fine, f"{name}: {what}: {ending}"
        path.write_bytes(before)
        if name == "out/filter_stats.json":
            shutil.copy2(path, root / "whole" / path.name)

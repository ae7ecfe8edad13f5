"""A comparison says what its runs show, or refuses: runs that are one, files that changed, two at a time, kills."""

import json
import os
import signal
import sys
import time
from base64 import b64encode
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import runs as comparison_runs
from scripts import compare, segmentor
from segmentation.options import TrainOptions
from tests.children import in_child
from tests.segmentation.chain import compare_options
from tests.test_processes import alive, gone


@pytest.fixture
def quick(monkeypatch):
    """Trainings and tests that give other weights and scores for each seed and kind; a list of what was run."""
    ran = []

    def call(children, words, log):
        args = segmentor.read_options(list(words))
        task = "train" if isinstance(args, TrainOptions) else "test"
        ran.append((task, Path(args.work_dir).name))
        rng = np.random.default_rng([quick.seed(args), 1 + bool(args.synthesized)])
        if task == "train":
            weights = Path(args.work_dir, "iter_2.pth")
            torch.save({"meta": time.time(), "state_dict": {"w": torch.from_numpy(rng.random(3))}}, weights)
            Path(args.work_dir, "last_checkpoint").write_text(str(weights))
        else:
            assert Path(args.load_from).is_file()
            score = quick.score(rng)
            classes = {quick.name: {"IoU": score, "Acc": score}}
            content = {"OA": score, "mIoU": score, "mAcc": score, "classes": classes}
            Path(args.out).write_text(json.dumps(content))

    quick = type(
        "Quick",
        (),
        {
            "ran": ran,
            "name": "a",
            "seed": staticmethod(lambda args: args.seed),
            "score": staticmethod(lambda rng: rng.random()),
        },
    )
    monkeypatch.setattr(comparison_runs, "segmentor", call)
    return quick


def test_seeds_that_are_one_are_refused(joint_chain, cli, quick):
    quick.seed = staticmethod(lambda args: 0)
    error = cli.refused("compare", *compare_options(joint_chain))
    assert "baseline_seed_1 and" in error and "baseline_seed_0: their weights and metrics on test are ident" in error
    assert not (joint_chain.root / "out/comparison.json").exists()


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.5] * 4, "baseline_seed_0: their metrics on test are identical"),
        ([0.5, 0.6, 0.7, 0.8], "OA differs by the same +10.00 points for all 2 seeds"),
    ],
)
def test_scores_that_do_not_depend_on_the_seed_are_refused(joint_chain, cli, quick, scores, words):
    scores = iter(scores)
    quick.score = staticmethod(lambda rng: next(scores))
    assert words in cli.refused("compare", *compare_options(joint_chain))


def test_files_that_changed_under_the_same_names_are_noticed(joint_chain, cli, quick):
    options = compare_options(
        joint_chain,
        "--cfg-options",
        f"model.backbone.init_cfg.checkpoint={joint_chain.weights}",
        "model.backbone.init_cfg.type=Pretrained",
    )
    cli("compare", *options)
    for name, words in (
        ("label_train/r1.png", "other real images and masks;"),
        ("img_train/r1.png", "other real images and masks;"),
        ("synth/resampled_label/r0_seed_1.png", "other synthesized images and masks;"),
        ("img_test/r2.png", "other test images and masks (test);"),
        ("weights.pth", "other weights or other files of the config;"),
        ("config.py", "other settings;"),
    ):
        path = joint_chain.root / name
        whole, times = path.read_bytes(), path.stat()
        if path.suffix == ".png":
            shape = np.array(Image.open(path)).shape
            Image.fromarray(np.full(shape, 1, np.uint8)).save(path)
        elif path.suffix == ".py":
            path.write_text(path.read_text().replace("lr=0.1", "lr=0.3"))
        else:
            torch.save({"state_dict": {"x": torch.zeros(1)}}, path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if copied there with its old time
        error = cli.refused("compare", *options)
        assert "holds runs with " + words in error
        path.write_bytes(whole)
    cli("compare", *options)  # another time, the same contents
    assert len(quick.ran) == 8


def test_damaged_files_of_its_own_are_refused_by_name(joint_chain, cli, quick):
    cli("compare", *compare_options(joint_chain))
    folder = joint_chain.root / "out/runs/joint_seed_0"
    metrics = (folder / "metrics_test.json").read_text()
    iou = f'"IoU": {json.loads(metrics)["classes"]["a"]["IoU"]}'
    below, nan = (metrics.replace(iou, f'"IoU": {text}') for text in ("-3", "NaN"))
    for name, content in (
        ("stamp.json", "{}"),
        ("stamp.json", '{"made_from": {"settings": NaN}}'),
        ("trained", ""),
        ("trained", "[1]"),
        ("metrics_test.json", "\0"),
        ("metrics_test.json", '{"classes": {}}'),
        ("metrics_test.json", below),
        ("metrics_test.json", nan),
    ):
        path = folder / name
        whole = path.read_text()
        path.write_text(content)
        error = cli.refused("compare", *compare_options(joint_chain))
        assert str(path) in error and "remove" in error and len(quick.ran) == 8, error
        path.write_text(whole)
    (folder / "metrics_test.json").unlink()  # as advised
    (folder / "trained").unlink()
    cli("compare", *compare_options(joint_chain))
    assert quick.ran[8:] == [("train", "joint_seed_0"), ("test", "joint_seed_0")]


def test_two_at_a_time_and_sigterm(joint_chain, cli, monkeypatch, tmp_path):
    """The second says who works there; the training of one that is ended ends with it, and the lock is free again."""
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\ncd {tmp_path}\necho $$ > pid.$$\nmv pid.$$ started.$$\nexec sleep 60\n")
    stub.chmod(0o755)
    options = [str(word) for word in compare_options(joint_chain, "--jobs", 2)]
    monkeypatch.setattr(sys, "executable", str(stub))
    child = os.fork()
    if child == 0:
        os._exit(in_child(lambda: compare.main(options)) & 0x7F)
    try:
        end = time.monotonic() + 20
        while len(started := list(tmp_path.glob("started.*"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        pids = [int(path.read_text()) for path in started]
        assert len(pids) == 2 and all(map(alive, pids))
        holder = (joint_chain.root / "out/.lock").read_text().split()[1]
        assert f"process {holder} on" in cli.refused("compare", *options)
        os.kill(int(holder), signal.SIGTERM)
        assert gone(pids)
    finally:
        os.waitpid(child, 0)
    assert not list(joint_chain.root.glob("out/runs/*/trained"))


class Active(HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "iframe", "object", "embed", "svg", "foreignobject", "link", "base", "form"):
            self.found.append(tag)
        self.found += [
            f"{key}={value}"
            for key, value in attributes
            if key.startswith("on") or (key in ("src", "href") and not value.startswith("data:image/"))
        ]


def test_nothing_in_the_page_runs(joint_chain, cli, quick):
    """Scripts in figures, and in the names and texts that others wrote."""
    attack = "</td><script>alert(1)</script><img src=x onerror='alert(1)'> $\\frac"
    root, images = joint_chain.root, joint_chain.root / "syn"
    quick.name = attack
    table = root / "hostile.json"
    table.write_text(json.dumps({"classes": [attack, *"bcde"]}))
    (images / "samples.jsonl").write_text(json.dumps({"name": "r0_seed_1", "reference": "\0", "prompt": attack}))
    (root / "filtered").mkdir()
    svg = "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
    (root / "filtered/filter_stats.svg").write_text(svg)
    options = compare_options(
        joint_chain,
        "--classes",
        table,
        "--syn-img-path",
        images,
        "--mask-path",
        root / "label_train",
        "--filtered-mask-path",
        root / "filtered",
    )
    cli("compare", *options)
    text = (root / "out/comparison.html").read_text()
    page = Active()
    page.feed(text)
    assert page.found == [] and escape(attack) in text and b64encode(svg.encode()).decode() in text
    (root / "filtered/filter_stats.svg").write_text("no figure")
    assert "filter_stats.svg: holds no figure" in cli.refused("compare", *options)

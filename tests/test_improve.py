"""The closed loop: what it runs, in which order, when it ends, and that no test image has a say."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cldm.synthesis.options import SynthesisOptions
from common.command import read_options
from common.errors import InputError
from common.tile_names import SCENE
from evaluation.improve.data import held_out, scenes_of
from evaluation.improve.options import ImproveOptions
from evaluation.improve.run import improve
from post_processing.allot import AllotOptions
from scripts import segmentor


@pytest.fixture
def data(tmp_path):
    """Four scenes of two tiles each, a reference, and a test tile."""
    root = tmp_path / "data"
    named = {"train": [f"t{scene}_y0_x{x}" for scene in range(4) for x in (0, 8)], "test": ["t9_y0_x0"]}
    for split, names in named.items():
        for name in names:
            for folder, suffix in ((f"img_{split}", "jpg"), (f"label_{split}", "png")):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / folder / f"{name}.{suffix}")
    shutil.copytree(root / "img_test", root / "ref_img")
    lines = [
        {"source": f"label_train/{name}.png", "target": f"img_train/{name}.jpg", "prompt": "a"}
        for name in named["train"]
    ]
    (root / "train_set_items.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "classes.json").write_text(json.dumps({"classes": ["field", "house"]}))
    for name in ("model.yaml", "model.safetensors"):
        (tmp_path / name).write_text("")
    return root


class Commands:
    """Stands for all commands: leaves what they leave, and scores rounds as told."""

    def __init__(self, scores):
        self.scores, self.lines = scores, []

    def __call__(self, module, words, log):
        self.lines.append((module, list(words)))

        def given(option):
            return words[words.index(option) + 1]

        folder = log.parent
        if module == "segmentor":
            work = folder / "segmentor"
            work.mkdir(exist_ok=True)
            (work / "last_checkpoint").write_text(str(work / "iter_1.pth"))
            score = self.scores[int(folder.name.removeprefix("round_"))]
            classes = {name: {"IoU": score, "Acc": score} for name in ("field", "house")}
            (work / "metrics.json").write_text(
                json.dumps({"mIoU": score, "OA": score, "mAcc": score, "classes": classes})
            )
        if module == "inference":
            for text in Path(given("--txt-file")).read_text().splitlines():
                images = folder / "images"
                images.mkdir(exist_ok=True)
                name = json.loads(text)["source"].split("/")[-1].removesuffix(".png")
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / f"{name}_seed_0.png")
        if module == "allot":
            shutil.copy(given("--masks"), given("--out"))

    def stages(self):
        return [words[0] if module == "segmentor" else module for module, words in self.lines]


def options(data, out, **more):
    return ImproveOptions(
        data=data, out=out, config=data.parent / "model.yaml", ckpt=data.parent / "model.safetensors", **more
    )


ROUND = ["allot", "inference", "filter", "resample", "train", "test"]


def test_rounds_go_on_until_they_bring_nothing(data, tmp_path):
    run = Commands([0.5, 0.6, 0.55, 0.58, 0.9])
    said = improve(options(data, tmp_path / "out", rounds=9), lambda folder: {}, run)
    assert run.stages() == ["train", "test", *3 * ROUND, "compare"] and "round 1 of 3 is the best" in said
    allotted = [words for module, words in run.lines if module == "allot"]
    used = [words[words.index("--segmentor") + 1] for words in allotted]
    assert [path.split("/")[-3] for path in used] == ["round_0", "round_1", "round_1"]  # the best so far
    assert [words[words.index("--first-seed") + 1] for words in allotted] == ["1000", "2000", "3000"]
    compared = run.lines[-1][1]
    assert compared[compared.index("--synthesized") + 1].endswith("round_1/resampled")
    report = json.loads((tmp_path / "out" / "improve.json").read_text())
    assert report["best"] == 1 and [one["mIoU"] for one in report["rounds"]] == [0.5, 0.6, 0.55, 0.58]
    page = (tmp_path / "out" / "improve.html").read_text()
    assert "mean IoU 50.00 -&gt; 60.00 %" in page and "comparison/comparison.html" in page


def test_no_test_image_has_a_say(data, tmp_path):
    run = Commands([0.5, 0.6, 0.5])
    improve(options(data, tmp_path / "out", patience=1), lambda folder: {}, run)
    for module, words in run.lines[:-1]:
        for option, word in itertools.pairwise(words):
            assert "test" not in word.split("/")[-1] or option == "--not-among", (module, option, word)
    splits = [words[words.index("--split") + 1] for _, words in run.lines if "--split" in words]
    assert set(splits) == {"val"} and run.lines[-1][0] == "compare"
    kept = {
        folder.name: sorted(path.stem for path in folder.iterdir())
        for folder in (tmp_path / "out/data").glob("label_*")
    }
    assert kept["label_test"] == ["t9_y0_x0"] and len(kept["label_val"]) == 2 and len(kept["label_train"]) == 6
    assert not {name.split("_")[0] for name in kept["label_val"]} & {name.split("_")[0] for name in kept["label_train"]}
    items = [
        json.loads(line)["source"] for line in (tmp_path / "out/data/train_set_items.json").read_text().splitlines()
    ]
    assert sorted(items) == [f"label_train/{name}.png" for name in kept["label_train"]]


def test_nothing_is_done_twice_and_another_command_is_refused(data, tmp_path):
    out, first = tmp_path / "out", Commands([0.5, 0.6, 0.5])

    class Ends(Exception):
        pass

    def ending(module, words, log):
        if module == "filter":
            raise Ends
        first(module, words, log)

    with pytest.raises(Ends):
        improve(options(data, out, patience=1), lambda folder: {}, ending)
    improve(options(data, out, patience=1), lambda folder: {}, first)
    assert first.stages() == ["train", "test", *ROUND, *ROUND, "compare"]
    again = Commands([])
    assert "round 1 of 2 is the best" in improve(options(data, out, patience=1), lambda folder: {}, again)
    assert again.lines == []
    with pytest.raises(InputError, match="round_0/train was done by another command"):
        improve(options(data, out, patience=1, training="--max-iters 7"), lambda folder: {}, again)
    improve(options(data, out, patience=1, gpus="cpu", jobs=2), lambda folder: {}, again)  # nothing comes out otherwise
    assert again.lines == []
    improve(options(data, out, patience=1, seeds=9), lambda folder: {}, again)
    assert again.stages() == ["compare"]  # which adds seeds itself


def test_a_stopped_training_goes_on_by_its_own_command_alone(data, tmp_path):
    class Stops(Exception):
        pass

    def stops(module, words, log):
        if "8" in words:
            (log.parent / "segmentor").mkdir()
            (log.parent / "segmentor/last_checkpoint").write_text("iter_1.pth")
        raise Stops

    def loop(run, **more):
        improve(options(data, tmp_path / "out", patience=1, **more), lambda folder: {}, run)

    for iterations in (9, 8):  # of the first nothing is left
        with pytest.raises(Stops):
            loop(stops, training=f"--max-iters {iterations}")
    run = Commands([0.5, 0.4])
    with pytest.raises(InputError, match=r"round_0/train was begun by another command; .* remove round_0"):
        loop(run, training="--max-iters 7")
    loop(run, training="--max-iters 8")
    assert run.stages()[:2] == ["train", "test"]


def test_maps_in_several_systems_are_told_to_every_stage_that_asks(data, tmp_path):
    run = Commands([0.5, 0.4])
    improve(options(data, tmp_path / "out", patience=1, filtering="--several-maps"), lambda folder: {}, run)
    told = {stage for stage, (_, words) in zip(run.stages(), run.lines, strict=True) if "--several-maps" in words}
    assert told == {"filter", "resample"}


@pytest.mark.parametrize(("times", "says"), [(2, "line 2: names the mask t0_y0_x0 again"), (0, "names no mask")])
def test_a_list_that_cannot_be_painted_is_refused_first(data, tmp_path, times, says):
    line = json.dumps({"source": "label_train/t0_y0_x0.png", "prompt": "a"}) + "\n"
    (data / "train_set_items.json").write_text(line * times)
    with pytest.raises(InputError, match=says):
        improve(options(data, tmp_path / "out", validation=0.2), lambda folder: {}, Commands([]))
    assert not (tmp_path / "out").exists()


def test_bands_go_to_every_stage_that_reads_them(data, tmp_path):
    stated = tmp_path / "bands.yaml"
    stated.write_text("model: {params: {bands: {ranges: [[0, 255], [0, 255], [0, 255]]}}}")
    (data / "img_train" / "t0_y0_x0.jpg.msk").write_text("where it has no data")
    run = Commands([0.5, 0.6, 0.5])
    improve(options(data, tmp_path / "out", patience=1, bands=stated), lambda folder: {}, run)
    assert [path.name for path in (tmp_path / "out" / "data").rglob("*.msk")] == ["t0_y0_x0.jpg.msk"]
    given = {stage: "--bands" in words for stage, (_, words) in zip(run.stages(), run.lines, strict=True)}
    not_read = {"filter", "resample"}  # the segmentor's own config, and files as they are
    assert given == {stage: stage not in not_read for stage in (*ROUND, "compare")}
    read = {"allot": AllotOptions, "inference": SynthesisOptions}
    for module, words in run.lines:
        if module in read:
            assert read_options(read[module], "", words).bands == stated
        elif module == "segmentor":
            assert segmentor.read_options(words).bands == stated
    stated.write_text("model: {}")
    with pytest.raises(InputError, match=r"bands\.yaml: has no model\.params\.bands"):
        improve(options(data, tmp_path / "other", bands=stated), lambda folder: {}, run)


def test_a_loop_that_brings_nothing_says_so(data, tmp_path):
    run = Commands([0.5, 0.4, 0.5])
    said = improve(options(data, tmp_path / "out"), lambda folder: {}, run)
    assert said.startswith("no round was better than real images alone") and "compare" not in run.stages()
    assert "none was better" in (tmp_path / "out" / "improve.html").read_text()


def test_scenes():
    scenes = scenes_of(["a_y0_x0", "a_y0_x8", "b", "c_d_y1_x2", "e_x0_y8", "f-row1-col2", "b_r3"], SCENE)
    assert scenes.pop("e") == ["e_x0_y8"] and scenes.pop("f") == ["f-row1-col2"] and scenes.pop("b_r3")
    assert scenes == {"a": ["a_y0_x0", "a_y0_x8"], "b": ["b"], "c_d": ["c_d_y1_x2"]}
    names = {f"s{n}": [f"s{n}_{k}" for k in range(4)] for n in range(50)}
    assert len(held_out(names, 0.2)) == 40
    assert held_out(names, 0.2) & {name for n in range(49) for name in names[f"s{n}"]} == (
        held_out({**names}, 0.2) - set(names["s49"])
    )
    uneven = {"large": [f"large_{k}" for k in range(25)], "small": [f"small_{k}" for k in range(5)]}
    assert (
        held_out(uneven, 0.2)
        == held_out({name: uneven[name] for name in ("small", "large")}, 0.2)
        == {*uneven["small"]}
    )
    with pytest.raises(InputError, match="all files are of one scene"):
        held_out({"a": ["a"]}, 0.5)
    with pytest.raises(InputError, match="does not fit the file b"):
        scenes_of(["b"], "(a)")
    with pytest.raises(InputError, match="put parentheses"):
        ImproveOptions(data=".", out=".", config=".", ckpt=".", scene="a")

"""The closed loop, before it begins: how data are cut, which words each command gets, and what a dry run leaves."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from common import command
from common.errors import InputError
from common.metrics_file import Metrics
from evaluation.comparison_page import Compared
from evaluation.improve.data import items_with_mask, round_masks
from evaluation.improve.lines import Stages, check_lines
from evaluation.improve.run import improve
from evaluation.improve.training_words import shared_out
from evaluation.recipes import REAL
from post_processing.allot import AllotOptions, _class_hardness
from post_processing.resample import ResampleOptions, poor_classes
from scripts.improve import READERS, main
from tests.test_improve import Commands, data, options  # noqa: F401


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.name.startswith(".")}


def looped(data, out, scores=(0.5, 0.6, 0.5), run=None, readers=None, **more):  # noqa: F811
    run = run or Commands(scores)
    improve(options(data, out, patience=1, **more), lambda folder: {}, run, readers)
    return run


def begun(data, out, **more):  # noqa: F811
    """A loop that is stopped after its first stage; what it ran."""
    run = Commands([0.5])

    def one(module, words, log):
        if words[0] == "test":
            raise Stopped
        run(module, words, log)

    with pytest.raises(Stopped):
        looped(data, out, run=one, **more)
    return run.stages()


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Plots are another test's, and take most of a loop's time here."""
    monkeypatch.setattr("evaluation.improve.run.write_page", lambda *_: "page")


def test_another_cut_is_made_anew_or_refused(data, tmp_path):  # noqa: F811
    out = tmp_path / "out"

    def stops(module, words, log):
        (log.parent / "segmentor").mkdir()
        raise Stopped

    with pytest.raises(Stopped):
        looped(data, out, run=stops)
    assert begun(data, out, validation=0.5) == ["train"]
    kept = {split: {path.stem for path in (out / "data" / f"img_{split}").iterdir()} for split in ("train", "val")}
    assert [len(names) for names in kept.values()] == [4, 4] and not kept["train"] & kept["val"]
    split = json.loads((out / "data/split.json").read_text())
    assert split["validation"] == 0.5 and {name.split("/")[0] for name in split["files"]} >= {"ref_img", "label_test"}
    assert begun(data, out, validation=0.5) == []
    with pytest.raises(InputError, match=r"img_train/t.* is not in img_(val|train) any more since .*name another"):
        looped(data, out, validation=0.2)
    image = data / "img_train" / f"{min(kept['train'])}.jpg"
    os.utime(image, ns=(1, 1))
    with pytest.raises(InputError, match=rf"img_train/{image.name} has changed since .*name another out"):
        looped(data, out, validation=0.5)
    os.utime(image, ns=(split["files"][f"img_train/{image.name}"]["mtime_ns"],) * 2)
    tile = Image.fromarray(np.zeros((8, 8), np.uint8))
    new = [data / "img_train/t7_y0_x0.jpg", data / "label_train/t7_y0_x0.png"]
    for file in new:
        tile.save(file)
    with pytest.raises(InputError, match=r"img_train/t\S+ is (new|not in img_train any more) since"):
        looped(data, out, validation=0.5)
    for file in new:
        file.unlink()
    (out / "data/split.json").unlink()  # of a loop before there was one: the same cut goes on, another does not
    with pytest.raises(InputError, match="has no place any more"):
        looped(data, out, validation=0.2)
    assert begun(data, out, validation=0.5) == [] and (out / "data/split.json").exists()


def test_data_that_the_loop_did_not_make_stay(data, tmp_path):  # noqa: F811
    before = tree(data)
    with pytest.raises(InputError, match="lies where the loop makes its own data"):
        looped(data, tmp_path)
    shutil.copytree(data, tmp_path / "out/data")
    with pytest.raises(InputError, match=r"data/img_train/t\S+ has no place any more"):
        looped(data, tmp_path / "out")
    assert tree(data) == before == tree(tmp_path / "out/data")


def test_a_dry_run_shows_the_commands_and_writes_nothing(data, tmp_path, capsys):  # noqa: F811
    before, out = tree(tmp_path), tmp_path / "out"
    words = [
        str(data),
        str(out),
        "--config",
        str(tmp_path / "model.yaml"),
        "--ckpt",
        str(tmp_path / "model.safetensors"),
    ]
    more = ["--training", "--max-iters 7 --logger tensorboard", "--painting", "--ddim-steps 3", "--dry-run"]
    remembered = list(command._read)
    main([*words, *more, "--layouts", "2"])
    said = capsys.readouterr().out
    assert tree(tmp_path) == before and "6 images to train on, 2 to validate on" in said
    names = [line.rstrip(":") for line in said.splitlines() if line.endswith(":")]
    stages = ["layouts", "allot", "paint", "filter", "resample", "train", "validate"]
    assert names == ["round_0, train", "round_0, validate", *(f"round_1, {one}" for one in stages), "out, comparison"]
    assert "scripts.inference --config" in said and "--ddim-steps 3" in said and "--total 16" in said
    assert [line.count("--logger tensorboard") for line in said.splitlines() if "--max-iters 7" in line] == [
        1,
        1,
        1,
        1,
        0,
    ]
    assert command._read[len(remembered) :] and command._read[-1].__name__ == "ImproveOptions"


@pytest.mark.parametrize(
    ("more", "total", "says", "never"),
    [
        ({}, 6, ["--rectify", "--candidates 2", "--treatment relabel --sure 0.6", "--min-valid 0", "--count 6"], []),
        ({"filtering": "--treatment=weight"}, 6, ["--rectify", "--treatment=weight"], ["relabel", "--sure"]),
        ({"layouts": 0, "images": 9, "painting": "--start-strength 0.5"}, 9, ["--start-strength 0.5"], ["--count"]),
        ({"recipe": "plain", "layouts": 3}, 18, ["--count 3"], ["--rectify", "--candidates", "relabel", "--min-valid"]),
        ({"recipe": "plain", "resampling": "--min-valid 0.2"}, 12, ["--min-valid 0.2"], ["--count", "--several-maps"]),
        ({"no_rectify": True}, 6, ["--judge", "--candidates 2"], ["--rectify"]),
        ({"filtering": "--treatment relabel"}, 6, ["--sure 0.6", "--several-maps"], ["--judge"]),
        ({"resampling": "--rule hardness"}, 6, ["--rule hardness"], ["--worst", "--min-valid"]),
        ({"resampling": "--inaccurate a"}, 6, ["--min-valid 0 --inaccurate a"], ["--worst"]),
        ({"resampling": "--below 0.4"}, 6, ["--min-valid 0 --below 0.4"], ["--worst"]),
    ],
)
def test_a_recipe_is_the_parts_that_are_not_named(data, tmp_path, more, total, says, never):  # noqa: F811
    stages = Stages(options(data, tmp_path / "out", **{"recipe": "together", **more}), 6).planned(2)
    check_lines(stages, READERS, data)
    lines = " ".join(" ".join(stage.line) for stage in stages)
    assert f"--total {total} --at-least {int(total >= 12 or (total >= 6 and 'layouts' in more))}" in lines
    assert not [one for one in says if one not in lines] and not [one for one in never if one in lines]


def test_a_loop_is_of_the_weights_that_painted_and_of_a_folder_of_its_own(data, tmp_path):  # noqa: F811
    looped(data, tmp_path / "out", rounds=1)
    (tmp_path / "model.safetensors").write_text("trained anew")
    with pytest.raises(InputError, match=r"ckpt \S+model\.safetensors: is not what round_1 was painted with"):
        looped(data, tmp_path / "out", rounds=1)
    (tmp_path / "another/comparison").mkdir(parents=True)
    with pytest.raises(InputError, match=r"out \S+another: holds a comparison that is not this loop's"):
        looped(data, tmp_path / "another")


def test_layouts_have_no_image_to_start_from(data, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"layouts: have no image for --start-strength in painting; .* layouts 0"):
        options(data, tmp_path / "out", recipe="together", painting="--start-strength 0.5")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"training": "--head-classes 3"}, "training --head-classes: not in the comparison at the end"),
        ({"training": "--augment fda"}, "training --augment: not in the comparison"),
        ({"training": "--tta"}, "training --tta: not in the comparison"),
        ({"training": "--real_share 0.5"}, "training --real_share: not in the comparison"),
        ({"training": "--seed 3"}, "training --seed: is given by the loop itself"),
        ({"training": "--max-iter 3"}, r"training: segmentor \(train\) says: unrecognized arguments: --max-iter 3"),
        ({"training": "--max-iters none"}, r"training: segmentor \(train\) says: --max-iters: "),
        ({"training": "'"}, "training ': No closing quotation"),
        ({"painting": "--help"}, r"painting: inference \(paint\) says: only prints its help"),
        ({"painting": "--rectify-steps 9 --ddim-steps 4", "rectify": True}, r"says: --rectify-steps 9: there are 4"),
        ({"allotting": "--total"}, r"allotting: allot \(allot\) says: --total: expected one argument"),
        ({"filtering": "--treatment relabels"}, r"filtering: filter \(filter\) says: --treatment: invalid choice"),
        ({"filtering": "--weight-map-path w"}, "filtering --weight-map-path: is given by the loop itself"),
        ({"resampling": "--out_dir=w"}, "resampling --out-dir: is given by the loop itself"),
        ({"allotting": "--at-least 3"}, "allotting --at-least 3: of 6 masks and layouts are more than the 12 images"),
        ({"rectify": True, "no_rectify": True}, "rectify and no_rectify: say one of them"),
    ],
)
def test_words_that_a_command_refuses_are_refused_first(data, tmp_path, words, says):  # noqa: F811
    remembered = list(command._read)
    with pytest.raises(InputError, match=says):
        looped(data, tmp_path / "out", readers=READERS, **words)
    assert not (tmp_path / "out").exists() and command._read == remembered


def test_words_of_a_training_go_to_those_that_know_them():
    words = ["--max-iters=5", "--val_split", "val", "--cfg-options", "a=1", "b=2", "--unchecked", "--confusion"]
    found = shared_out(words)
    both = ["--max-iters=5", "--cfg-options", "a=1", "b=2"]
    assert found["train"] == [both[0], "--val_split", "val", *both[1:], "--unchecked"]
    assert found["test"] == [*both, "--unchecked", "--confusion"] and found["compare"] == both


def test_weighted_pixels_are_learned_from(data, tmp_path):  # noqa: F811
    for weighted, filtering in ((False, ""), (True, "--treatment=weight")):
        stages = Stages(options(data, tmp_path / "out", filtering=filtering), 6).planned(2)
        check_lines(stages, READERS, data)
        lines = {f"{stage.folder.name}/{stage.name}": stage.line for stage in stages}
        assert ["--loss-weights" in lines[f"round_{number}/train"] for number in (0, 1)] == [False, weighted]
        maps = ["--weight-map-path", str(tmp_path / "out/round_1/weights")]
        assert [maps[1] in lines[f"round_1/{name}"] for name in ("filter", "resample")] == [weighted] * 2
        assert ("joint+weights" in lines["out/comparison"]) == weighted


def test_a_class_that_no_mask_shows_has_no_say(data, tmp_path, capsys):  # noqa: F811
    scores = {"a": {"IoU": 0.8, "Acc": 0.9}, "b": {"IoU": 0.4, "Acc": 0.5}, "c": {"IoU": 0.0, "Acc": None}}
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps({"mIoU": 0.4, "classes": scores}))
    found = Metrics(mIoU=0.4, classes=scores).of_shown()
    assert found.mIoU == pytest.approx(0.6) and found.classes["c"].IoU is None and found.classes["b"].IoU == 0.4
    whole = Metrics(mIoU=0.6, classes={name: scores[name] for name in "ab"})
    assert whole.of_shown() is whole
    of_ious = Metrics(mIoU=0.4, classes={name: {"IoU": entry["IoU"]} for name, entry in scores.items()})
    assert of_ious.of_shown() is of_ious  # nothing is said of what masks show
    runs = {"baseline": [{"test": {"mIoU": 0.4, "mAcc": 0.7, "OA": 0.6, "classes": scores}}]}
    compared = Compared("", runs, [], {}, {}, {}, "", {}).of(REAL, "test")[0]
    assert compared["mIoU"] == found.mIoU and compared["OA"] == 0.6 and runs["baseline"][0]["test"]["mIoU"] == 0.4
    paths = {"data_root": ".", "masks": "m", "references": "r", "classes": "c", "out": "o", "total": 1}
    hardness = _class_hardness(AllotOptions(**paths, metrics=file), ["a", "b", "c"])
    assert hardness[:2] == pytest.approx([0.2, 0.6]) and np.isnan(hardness[2])
    kept = ResampleOptions(filtered_mask_path="f", syn_img_path="i", out_dir="o", metrics=file, worst=1)
    assert poor_classes(kept, ["a", "b", "c"]) == [1]

    class Stray(Commands):
        def __call__(self, module, words, log):
            super().__call__(module, words, log)
            if words[0] == "test":
                path = log.parent / "segmentor" / "metrics.json"
                metrics = json.loads(path.read_text())
                if log.parent.name != "round_0":  # predicted in one pixel
                    metrics["classes"]["pond"] = {"IoU": 0.0, "Acc": None}
                    metrics["mIoU"] *= 2 / 3
                else:
                    metrics["classes"]["pond"] = {"IoU": None, "Acc": None}
                path.write_text(json.dumps(metrics))

    run = Stray([0.5, 0.6, 0.5])
    assert "round 1 of 2 is the best" in improve(options(data, tmp_path / "out", patience=1), lambda folder: {}, run)
    assert capsys.readouterr().out.count("not shown by the validation scenes, and in no score: pond") == 1
    assert {line[line.index("--worst") + 1] for module, line in run.lines if module == "resample"} == {"1"}


def test_items_without_a_mask_and_broken_lines(data, tmp_path):  # noqa: F811
    path = data / "train_set_items.json"
    lines = path.read_text()
    path.write_text(lines + json.dumps({"target": "img_train/t0_y0_x0.jpg", "prompt": "alone"}) + "\n")
    begun(data, tmp_path / "out")
    for folder in ("layouts", "data"):  # new masks, too
        (tmp_path / "out" / folder).mkdir(exist_ok=True)
    shutil.copy(data / "label_train/t0_y0_x0.png", tmp_path / "out/layouts/new.png")
    (tmp_path / "out/layouts/items.json").write_text('{"source": "new.png"}\n{"target": "a.png"}\n')
    assert round_masks(tmp_path / "out/data", "round_1", tmp_path / "out/layouts") == 7
    assert [number for number, _ in items_with_mask(path)] == list(range(1, 9))
    for broken, says in (
        ("{", "no JSON object"),
        ('{"source": 3}', "field source: needs"),
        ('{"source": "x.png"}', "x.png is not in"),
    ):
        path.write_text(lines + broken + "\n")
        with pytest.raises(InputError, match=rf"train_set_items\.json line 9: {says}"):
            looped(data, tmp_path / "other")

"""Arms of a comparison: what each trains, in which order, and what the page makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.command import read_options
from common.errors import InputError
from evaluation import runs as comparison_runs
from evaluation.arms import Arm, arms_of
from evaluation.compare import CompareOptions
from evaluation.recipes import JOINT, REAL, parse_recipe, recipes_of
from evaluation.runs import Comparison
from scripts import compare, segmentor
from segmentation.options import PredictOptions, TrainOptions
from tests.segmentation.chain import compare_options


def test_recipes_have_one_name_and_one_folder():
    assert (REAL.kind, JOINT.kind, parse_recipe("real+fda").name) == ("baseline", "joint", "fda")
    found = parse_recipe("weights+fda+joint:care")
    assert (found.name, found.kind) == ("joint:care+fda+weights", "joint-care+fda+weights")
    assert parse_recipe("self_training+copy_paste").free and not found.free and not REAL.free
    assert [recipe.name for recipe in recipes_of(("joint", "real"))] == ["real", "joint"]
    for words, message in (
        (("fdx",), "write parts of real"),
        (("fda:care",), "write parts of real"),
        (("joint+joint",), "names joint twice"),
        (("joint+pretrain",), "joint and pretrain contradict each other"),
        (("synthesized+joint:care",), "joint and synthesized contradict each other"),
        (("fda+weights",), "weights are those of synthesized"),
        (("real",), "name what is to be compared with it"),
        (("fda", "real+fda"), "names one arm twice"),
    ):
        with pytest.raises(InputError, match=message):
            recipes_of(words)


def options_of(chain, *more):
    return read_options(CompareOptions, "", [str(word) for word in compare_options(chain, *more)])


def test_what_each_arm_trains(joint_chain):
    refs = joint_chain.root / "img_test"
    arms = arms_of(
        options_of(
            joint_chain,
            *("--arms", "fda", "self_training", "pretrain", "joint:care+weights+color_transfer", "copy_paste"),
            "synthesized:care",
            *("--references", refs, "--others", f"care={joint_chain.root / 'synth'}", "--max-iters", 9),
            *("--real-share", 0.5, 1, "--amounts", 0.4, "--pretrain-share", 0.3),
        )
    )
    base = arms["baseline"].training
    assert base == TrainOptions(config=base.config, classes=base.classes, data_root=base.data_root, max_iters=9)
    fda, pretrain, care = arms["fda"].training, arms["pretrain"], arms["joint-care+color_transfer+weights"].training
    assert (fda.augment, fda.references, fda.synthesized) == (("fda",), refs, None)
    assert (pretrain.pretraining.real_share, pretrain.pretraining.max_iters, pretrain.training.max_iters) == (0, 3, 6)
    assert pretrain.training.synthesized is None and pretrain.pretraining.synthesized
    assert care.loss_weights and care.augment == ("color_transfer",) and care.repeat == 10
    assert arms["copy_paste"].training.references is None
    alone = arms["synthesized-care"].training
    assert (alone.real_share, alone.repeat, alone.synthesized) == (0.0, 1, str(joint_chain.root / "synth"))
    teacher = arms["self_training"]
    assert (teacher.teacher.sure, teacher.training.repeat) == (0.9, 1)
    points = ["baseline_share_0.5", "joint_share_0.5", "joint"]  # 0.4 of 3 real images is the one synthesized there is
    assert [*arms][-3:] == ["joint", *points[:2]]
    assert arms["joint_share_0.5"].training.real_share == 0.5 and arms["joint"].training.real_share is None
    with pytest.raises(InputError, match=r"2 images for 3 real ones; .* has 1"):
        arms_of(options_of(joint_chain, "--amounts", 0.6))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arms", "fda"], "name the images whose style it takes"),
        (["--arms", "self_training"], "name the images that it labels"),
        (["--arms", "joint:x"], "name its images with --others x=DIR"),
        (["--others", "x"], "write NAME=DIR"),
        (["--amounts", "1", "1"], "write each number once"),
        (["--title", "It helps"], "fewer than 5 seeds, is no verdict"),
        (["--seeds", "5", "--title", "A demonstration"], "is no verdict: say"),
        (["--arms", "pretrain", "--pretrain-share", "1"], "none is left"),
    ],
)
def test_arms_that_lack_something_are_refused(joint_chain, cli, more, message):
    assert message in cli.refused("compare", *compare_options(joint_chain, *more))


def test_all_arms_train_in_order_and_go_on(joint_chain, cli, monkeypatch):
    """One seed, for real: a teacher is done before its pupil, pre-training before the rest; nothing is done twice."""
    ran = []

    def call(children, words, log):
        task = words[0]
        args = None if task == "predict" else segmentor.read_options(list(words))
        ran.append((task, args.work_dir.name if args else ""))
        segmentor.main(list(words))

    monkeypatch.setattr(comparison_runs, "segmentor", call)
    more = ["--seeds", 1, "--sure", 0.21, "--references", joint_chain.root / "img_test"]
    options = compare_options(joint_chain, *more, "--arms", "self_training", "pretrain", "--max-iters", 4)
    assert "3 of 3 trainings left (3 arms, 1 seeds), 12 iterations" in cli("compare", *options, "--plan") and not ran
    out = cli("compare", *options)
    assert [job for job in ran if job[0] != "test"] == [
        ("train", "baseline_seed_0"),
        ("train", "pretraining"),
        ("train", "pretrain_seed_0"),
        ("predict", ""),
        ("train", "self_training_seed_0"),
    ]
    masks = [
        np.array(Image.open(path)) for path in sorted((joint_chain.root / "out/runs").glob("self*/pseudo/masks/*"))
    ]
    assert len(masks) == 3 and any((mask == 255).any() for mask in masks) and any((mask < 5).any() for mask in masks)
    report = json.loads((joint_chain.root / "out/comparison.json").read_text())
    arms = report["results"]["test"]["arms"]
    assert {name: arm["iterations"] for name, arm in arms.items()} == {"self_training": 8, "pretrain": 4}
    assert report["title"].startswith("Example of 1 seed: ") and "self_training" in out
    before = len(ran)
    cli("compare", *options)
    assert len(ran) == before
    (joint_chain.root / "out/runs/pretrain_seed_0/trained").unlink()
    for path in (joint_chain.root / "out/runs/pretrain_seed_0").glob("metrics*"):
        path.unlink()
    cli("compare", *options)  # it had all its weights: no pre-training again
    assert ran[before:] == [("train", "pretrain_seed_0"), ("test", "pretrain_seed_0")]


def test_trainings_run_seed_by_seed(tmp_path):
    plain, pupil = Arm(REAL, None), Arm(parse_recipe("self_training"), None, teacher=PredictOptions)
    arms = {"baseline": plain, "self_training": pupil, "joint": plain}
    jobs = Comparison(tmp_path, 2, arms, {}, {}).jobs()
    assert jobs == [(kind, seed) for seed in range(2) for kind in ("baseline", "joint", "self_training")]


def test_curves_and_many_arms_on_one_page(joint_chain, cli, monkeypatch):
    """Trainings replaced by scores that are known: joint gains a tenth, fda loses it, a smaller part loses more."""

    def call(children, words, log):
        args = segmentor.read_options(list(words))
        folder = Path(args.work_dir)
        kind, seed = folder.name.split("_seed_")
        if isinstance(args, TrainOptions):
            torch.save({"state_dict": {"w": torch.tensor([float(seed), len(kind)])}}, folder / "iter_2.pth")
            (folder / "last_checkpoint").write_text(str(folder / "iter_2.pth"))
            return
        score = 0.4 + 0.1 * ("joint" in kind) - 0.1 * (kind == "fda") - 0.2 * ("share" in kind)
        score += np.random.default_rng([int(seed), len(kind)]).normal() / 500
        classes = {f"name {c}": {"IoU": score, "Acc": score} for c in range(5)}
        content = {"OA": score, "mIoU": score, "mAcc": score, "classes": classes}
        Path(args.out).write_text(json.dumps(content))

    monkeypatch.setattr(comparison_runs, "segmentor", call)
    arms = ["--arms", "fda", "joint", "--references", joint_chain.root / "img_test"]
    for path in [*(joint_chain.root / "synth").rglob("r0_seed_1.png")]:  # of a mask that the smaller share takes
        path.rename(path.with_name("r1_seed_1.png"))
    with pytest.raises(InputError, match="two of them are 3 of the same images; there are 3 real ones"):
        arms_of(options_of(joint_chain, "--real-share", 0.9, 1))
    words = compare_options(joint_chain, *arms, "--seeds", 5, "--real-share", 0.7, 1, "--amounts", 0.3)
    compare.main([str(word) for word in words])
    result = json.loads((joint_chain.root / "out/comparison.json").read_text())["results"]["test"]
    assert result["verdict"] == "better" == result["arms"]["joint"]["verdict"]
    assert result["arms"]["fda"]["verdict"] == "worse" and result["arms"]["fda"]["p_holm"] < 1e-4
    assert [point["value"] for point in result["curves"]["share"]] == [0.7, 1]
    shares = [point["baseline"]["mean"] for point in result["curves"]["share"]]
    assert shares == pytest.approx([0.2, 0.4], abs=0.01)
    assert result["curves"]["amount"][0]["difference"]["mean"] == pytest.approx(0.1, abs=0.01)
    page = (joint_chain.root / "out/comparison.html").read_text()
    assert page.index("What helps a segmentor") < page.index("<b>Helps:</b> joint +") < page.index("By the part of the")
    assert "Example" not in page and "0.3 for each real image" in page and "70% of the real images" in page

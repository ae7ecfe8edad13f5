import json

import numpy as np
import pytest
from PIL import Image

from common import command as cli
from common.options import words as option_words
from common.processes import Children
from evaluation import runs as comparison_runs
from evaluation import trainings
from evaluation.compare import CompareOptions, compare_trainings
from evaluation.runs import KINDS
from scripts import compare, evaluate_samples, segmentor
from segmentation import testing, training
from segmentation.cfg_options import parse_settings
from tests.segmentation.chain import compare_options, evaluate_options


def run(script, *argv):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: script.main([str(part) for part in argv]))
    return stop.value.code


@pytest.fixture
def chain(joint_chain):
    return joint_chain


@pytest.fixture
def in_process(monkeypatch):
    """Trains and tests in this process, to save start-up times; counts the calls."""
    calls = []

    def call(children, args, log):
        calls.append(args)
        log.parent.mkdir(parents=True, exist_ok=True)
        segmentor.main(list(args))

    monkeypatch.setattr(comparison_runs, "segmentor", call)
    return calls


def test_comparison_page_and_resume(chain, in_process, capsys):
    (chain.root / "syn/samples.jsonl").write_text(
        json.dumps({"name": "r0_seed_1", "reference": "img_test/r0.png", "prompt": "a prompt"}) + "\n"
    )
    options = compare_options(chain, "--syn-img-path", chain.root / "syn", "--mask-path", chain.root / "label_train")
    assert run(compare, *options) == 0
    assert len(in_process) == 8  # two kinds, two seeds, train and test
    report = json.loads((chain.root / "out/comparison.json").read_text())
    runs = report["runs"]
    assert runs["baseline"][0]["test"]["mIoU"] != runs["baseline"][1]["test"]["mIoU"]  # seeds differ
    assert runs["baseline"][0]["test"]["mIoU"] != runs["joint"][0]["test"]["mIoU"]  # data differ
    entry = report["results"]["test"]["scores"]["mIoU"]
    assert entry["difference"]["mean"] == pytest.approx(
        np.mean([after["test"]["mIoU"] - before["test"]["mIoU"] for before, after in zip(*runs.values(), strict=True)])
    )
    page = (chain.root / "out/comparison.html").read_text()
    assert "a prompt" in page and page.count("data:image/") == 6 + 6 + 1 + 2  # masks, images, one reference, plots
    (chain.root / "out/runs/joint_seed_1/metrics_test.json").unlink()  # as if stopped before the last test
    assert run(compare, *options) == 0
    assert len(in_process) == 9 and in_process[-1][0] == "test"
    again = json.loads((chain.root / "out/comparison.json").read_text())
    assert again["results"] == report["results"]
    assert run(compare, *options, "--max-iters", 3) == 2
    assert "holds runs with other" in capsys.readouterr().err


def test_both_trainings_get_the_same_but_for_the_data(chain):
    words = ["a.b=None", "c.d=(1,2)", "e.f=007", "g.h='x,y'"]
    line = [str(part) for part in compare_options(chain, "--cfg-options", *words)]
    options = trainings.training_options(cli.read_options(CompareOptions, "", line))
    lines = {kind: option_words(options[kind]) for kind in KINDS}
    more = [f"--synthesized={chain.root / 'synth'}", "--repeat=10"]
    assert [word for word in lines["joint"] if word not in more] == lines["baseline"]
    joint = segmentor.read_options(["train", *lines["joint"]])
    assert joint == options["joint"] and joint.cfg_options == tuple(words)  # as they were written
    read = parse_settings(joint.cfg_options)
    assert read["a.b"] is None and read["c.d"] == (1, 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--synthesized", "nowhere"], "nowhere/resampled_img: no such folder"),
        (["--seeds", "0"], "--seeds"),
        (["--syn-img-path", "syn"], "needs --mask-path"),
        (["--filtered-mask-path", "nowhere"], "nowhere: no such folder"),
        (["--joint-config", "other.py"], "optim_wrapper differs"),
    ],
)
def test_unfair_or_bad_comparisons_are_refused(chain, capsys, monkeypatch, in_process, more, message):
    monkeypatch.chdir(chain.root)
    text = chain.config.read_text()
    (chain.root / "other.py").write_text(text.replace("lr=0.1", "lr=0.2"))
    assert run(compare, *compare_options(chain, *more)) == 2
    assert message in capsys.readouterr().err and not in_process


def test_files_are_opened_once_before_all_trainings(chain, in_process, capsys, monkeypatch):
    opened = []
    check = trainings.check_files
    monkeypatch.setattr(
        trainings, "check_files", lambda cfg, loaders, *more: opened.append(loaders) or check(cfg, loaders, *more)
    )
    for module in (training, testing):
        monkeypatch.setattr(module, "check_files", lambda *_: pytest.fail("a training opened all files again"))
    folders = {"synthesized": chain.root / "synth", "data_root": chain.root, "classes": chain.table}
    options = {"config": str(chain.config), **{name: str(path) for name, path in folders.items()}}
    compared = compare_trainings(CompareOptions(**options, seeds=2, max_iters=2, out_dir=chain.root / "out"))
    report = json.loads((chain.root / "out/comparison.json").read_text())
    assert set(compared) == {"test"} and compared["test"]["scores"] == report["results"]["test"]["scores"]
    assert (chain.root / "out/comparison.html").is_file()
    assert len(opened) == 3  # both kinds of training, one test set
    assert run(compare, *compare_options(chain)) == 0 and len(opened) == 3  # nothing left to do
    Image.new("L", (16, 16), 9).save(chain.root / "synth/resampled_label/r0_seed_1.png")
    calls = len(in_process)
    assert run(compare, *compare_options(chain, "--out-dir", chain.root / "other")) == 2
    assert "r0_seed_1.png: class ids 9 are not in 0..4" in capsys.readouterr().err
    assert len(in_process) == calls


def test_a_training_that_fails_is_reported(chain, capsys):
    log = chain.root / "log.txt"
    with pytest.raises(Exception, match=r"ended with code 2: error: .*nowhere\.py: no such config"):
        comparison_runs.segmentor(Children(), ["train", str(chain.root / "nowhere.py")], log)


def test_evaluation_of_samples(chain, capsys):
    copied = chain.root / "syn/r1_seed_2.png"
    Image.open(chain.root / "img_train/r1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copied)
    assert run(evaluate_samples, *evaluate_options(chain)) == 0
    report = json.loads((chain.root / "eval/evaluation.json").read_text())
    assert report["copies"]["images"] == ["r1_seed_2"]
    assert report["nearest"]["r1_seed_2"] == {"distance": 0.0, "nearest": str(chain.root / "img_train/r1.png")}
    segmentor.main(
        [
            "test",
            str(chain.config),
            "--load-from",
            str(chain.weights),
            "--work-dir",
            str(chain.root),
            "--out",
            str(chain.root / "metrics.json"),
        ]
    )
    trusted = json.loads((chain.root / "metrics.json").read_text())
    assert report["real"]["mIoU"] == pytest.approx(trusted["mIoU"])
    assert report["real"]["classes"]["name 1"] == pytest.approx(trusted["classes"]["name 1"])
    masks = [np.array(Image.open(path)) for path in (chain.root / "label_train").iterdir()]
    pixels = sum((mask != 255).sum() for mask in masks)
    cover = report["coverage"]["name 2"]
    assert cover["share_synthesized"] == pytest.approx(sum((mask == 2).sum() for mask in masks) / pixels)
    assert (cover["images_real"], cover["images_synthesized"]) == (3, 6)
    with Image.open(chain.root / "eval/nearest.jpg") as sheet:
        assert sheet.width > sheet.height > 100
    assert "FID" not in report and "copies            1 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train-img-path", "nowhere"], "nowhere: no such folder"),
        (["--inception-weights", "none.pth"], "none.pth: no such file"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_bad_evaluations_are_refused(chain, capsys, more, message):
    assert run(evaluate_samples, *evaluate_options(chain, *more)) == 2
    assert message in capsys.readouterr().err and not (chain.root / "eval/evaluation.json").exists()

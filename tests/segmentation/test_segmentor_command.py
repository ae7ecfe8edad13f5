import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmseg.registry import DATASETS, MODELS
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix

from common import command as cli
from common.errors import InputError
from scripts import segmentor as script
from segmentation.classes import class_table
from segmentation.config import heads, load_config
from segmentation.config_changes import check_classes, set_max_iters
from segmentation.trees import entries
from tests.segmentation.test_filter_command import Harmful

ROOT = Path(__file__).parents[2]


def run(*argv):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: script.main([str(part) for part in argv]))
    return stop.value.code


@pytest.fixture
def chain(make_chain):
    chain = make_chain()
    rng = np.random.default_rng(0)
    for index in range(2):
        for folder, shape in (("resampled_img", (24, 24, 3)), ("resampled_label", (24, 24))):
            (chain.root / "synth" / folder).mkdir(parents=True, exist_ok=True)
            array = rng.integers(0, 5, shape).astype(np.uint8)
            Image.fromarray(array).save(chain.root / "synth" / folder / f"r0_seed_{index}.png")
    return chain


def test_scores_agree_with_torchmetrics(chain):
    out = chain.root / "metrics.json"
    assert run("test", chain.config, "--load-from", chain.weights, "--work-dir", chain.root / "work", "--out", out) == 0
    confusion = MulticlassConfusionMatrix(5, ignore_index=255)
    for path in (chain.root / "label_test").iterdir():
        x = (np.array(Image.open(chain.root / "img_test" / path.name), dtype=float) - [120, 110, 100]) / [60, 55, 50]
        predicted = (x @ chain.weight.astype(float).T + chain.bias).argmax(axis=-1)
        confusion.update(torch.tensor(predicted), torch.tensor(np.array(Image.open(path))).long())
    matrix = confusion.compute().double()  # rows: truth
    hit = matrix.diag()
    report = json.loads(out.read_text())
    assert report["OA"] == pytest.approx(float(hit.sum() / matrix.sum()))
    assert report["mIoU"] == pytest.approx(float((hit / (matrix.sum(0) + matrix.sum(1) - hit)).mean()))
    assert report["mAcc"] == pytest.approx(float((hit / matrix.sum(1)).mean()))
    assert list(report["classes"]) == [f"name {c}" for c in range(5)]
    assert report["classes"]["name 2"]["Acc"] == pytest.approx(float((hit / matrix.sum(1))[2]))


def test_training_stops_resumes_and_joins_synthesized_images(chain):
    work = chain.root / "work"
    options = ["--work-dir", work, "--synthesized", chain.root / "synth", "--repeat", 3, "--pretrained", "none"]
    assert run("train", chain.config, *options, "--max-iters", 2) == 0
    assert (work / "last_checkpoint").read_text().endswith("iter_2.pth")
    assert run("train", chain.config, *options, "--max-iters", 3, "--resume") == 0
    weights = CheckpointLoader.load_checkpoint(str(work / "iter_3.pth"))
    assert weights["meta"]["iter"] == 3 and weights["meta"]["dataset_meta"]["classes"][0] == "name 0"
    dumped = load_config(str(work / "config.py"))  # mmengine writes the resolved config beside the weights
    dataset = DATASETS.build(dumped.train_dataloader.dataset)
    assert len(dataset) == 3 * 3 + 2
    assert sum("synth" in dataset.get_data_info(i)["img_path"] for i in range(len(dataset))) == 2
    assert run("test", chain.config, "--load-from", work / "iter_3.pth", "--work-dir", work) == 0
    assert json.loads((work / "metrics.json").read_text())["images"] == 3


def test_bfloat16_trains_on_a_cpu_to_nearly_the_same_weights(chain):
    def trained(*precision):
        work = chain.root / f"work{len(precision)}"
        assert run("train", chain.config, "--work-dir", work, "--max-iters", 3, *precision) == 0
        return CheckpointLoader.load_checkpoint(str(work / "iter_3.pth"))["state_dict"]

    full, half = trained(), trained("--precision", "bf16")
    key = "decode_head.conv_seg.weight"
    assert half[key].dtype == torch.float32
    assert 0 < (full[key] - half[key]).abs().max() < 1e-3


def test_another_split_and_class_table(chain):
    (chain.root / "img_test").rename(chain.root / "img_target")
    (chain.root / "label_test").rename(chain.root / "label_target")
    table = chain.root / "other.json"
    table.write_text(json.dumps({"classes": list("abcde")}))
    assert (
        run(
            "test",
            chain.config,
            "--load-from",
            chain.weights,
            "--work-dir",
            chain.root,
            "--split",
            "target",
            "--data-root",
            chain.root,
            "--classes",
            table,
        )
        == 0
    )
    assert list(json.loads((chain.root / "metrics.json").read_text())["classes"]) == list("abcde")


def test_mask_lists(chain):
    path = chain.root / "list.json"
    path.write_text('{"source": "label_train/r1.png", "target": "img_train/r1.png", "prompt": "x"}\n')
    dataset = DATASETS.build(
        {"type": "MaskDataset", "classes": str(chain.table), "data_root": str(chain.root), "ann_file": "list.json"}
    )
    assert [Path(dataset.get_data_info(0)[key]).parent.name for key in ("img_path", "seg_map_path")] == [
        "img_train",
        "label_train",
    ]
    path.write_text('{"source": "label_train/none.png", "target": "img_train/r1.png"}\n')
    with pytest.raises(InputError, match=r"list.json: line 1: file not found: label_train/none.png"):
        DATASETS.build(
            {"type": "MaskDataset", "classes": str(chain.table), "data_root": str(chain.root), "ann_file": "list.json"}
        )


@pytest.mark.parametrize(
    ("path", "count", "joint"),
    [
        ("demo/mmseg/base_config.py", 17, False),
        ("demo/mmseg/joint_config.py", 17, True),
        ("configs/mmseg/gid.py", 24, False),
        ("configs/mmseg/gid_joint.py", 24, True),
        ("configs/mmseg/loveda.py", 7, False),
        ("configs/mmseg/loveda_joint.py", 7, True),
        ("configs/mmseg/segformer_b0.py", 17, False),
        ("configs/mmseg/tiny.py", 17, False),
        ("configs/mmseg/tiny_unet.py", 17, False),
    ],
)
def test_every_config_agrees_with_its_class_table(path, count, joint):
    config = load_config(str(ROOT / path))
    check_classes(config)
    assert all(head.num_classes == count for head in heads(config))
    train = config.train_dataloader.dataset
    assert len(class_table(train.classes)["classes"]) == count
    assert train.get("repeat", 1) == (10 if joint else 1) and bool(train.get("synthesized")) == joint
    crop = next(entries(train.pipeline, "RandomCrop")).crop_size
    assert crop == config.model.data_preprocessor.size == ((256, 256) if "tiny" in path else (512, 512))


def test_the_published_models_have_their_sizes():
    for name, millions in (("pspnet_r50", 48.97), ("segformer_b0", 3.72)):
        config = load_config(str(ROOT / f"configs/mmseg/{name}.py"))
        config.model.pop("pretrained", None)
        size = sum(parameter.numel() for parameter in MODELS.build(config.model).parameters())
        assert size / 1e6 == pytest.approx(millions, abs=0.03)


def test_schedules_end_with_the_training():
    config = load_config(str(ROOT / "configs/mmseg/segformer_b0.py"))
    set_max_iters(config, 2000)
    assert [(part.begin, part.end) for part in config.param_scheduler] == [(0, 1500), (1500, 2000)]
    assert config.default_hooks.checkpoint.interval == 400


def test_weights_that_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(pickle.dumps({"state_dict": Harmful()}))
    with pytest.raises(InputError, match=r"contains code .*refused and not run"):
        CheckpointLoader.load_checkpoint("w.pth")  # as the Runner does for --load-from and --resume
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "nothing"], "no such class table"),
        (["--data-root", "nowhere"], "nowhere/img_train: no such folder"),
        (["--synthesized", "nowhere"], "nowhere/resampled_img: no such folder"),
        (["--pretrained", "none.pth"], "--pretrained none.pth: no such file"),
        (["--load-from", "none.pth"], "none.pth: no such file of weights"),
        (["--cfg-options", "model.decode_head"], "--cfg-options model.decode_head: settings are written key=value"),
        (["--cfg-options", "model.decode_head.num_classes=9"], "num_classes is 9, but class table"),
        (["--repeat", "0"], "--repeat: 0: write a whole number, 1 to"),
        (["--max-iters", "0"], "--max-iters"),
    ],
)
def test_bad_options_are_refused(chain, capsys, options, message):
    assert run("train", chain.config, "--work-dir", chain.root / "work", *options) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_mask_is_missing(chain, capsys):
    (chain.root / "label_train/r1.png").unlink()
    assert run("train", chain.config, "--work-dir", chain.root / "work") == 2
    assert "img_train/r1.png: no mask r1.png under" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("rgb", "r1.png: has three channels that differ"),
        ("id", "r1.png: class ids 7 are not in 0..4"),
        ("cut", "img_train/r1.png: cannot be read"),
    ],
)
def test_faulty_files_are_found_before_training(chain, capsys, file, message):
    mask = chain.root / "label_train/r1.png"
    if file == "rgb":
        picture = Image.open(mask).convert("RGB")
        picture.putpixel((0, 0), (1, 2, 3))
        picture.save(mask)
    elif file == "id":
        ids = np.array(Image.open(mask))
        ids[0, 0] = 7
        Image.fromarray(ids).save(mask)
    else:
        image = chain.root / "img_train/r1.png"
        image.write_bytes(image.read_bytes()[:60])
    assert run("train", chain.config, "--work-dir", chain.root / "work") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (chain.root / "work").exists()


def test_reading_without_workers():
    cfg = load_config(str(Path(__file__).parents[2] / "configs/mmseg/tiny.py"), {"train_dataloader.num_workers": 0})
    assert not cfg.train_dataloader.persistent_workers and cfg.test_dataloader.num_workers > 0

"""MSeg: seven training sets in universal ids, six test sets in their own, in the published layout."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import DATASETS
from PIL import Image

from common.errors import InputError
from gss.mseg import MSegMetric, read_names, read_taxonomy, universal_ids
from segmentation.trees import entries

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "gss"
UNIVERSAL = ["building", "car", "road", "sky"]
TESTS = ["camvid-11", "kitti-19", "pascal-context-60", "scannet-20", "voc2012", "wilddash-19"]
TAXONOMY = Path("data/mseg_dataset/mseg-api/mseg/class_remapping_files/MSeg_master.tsv")
MASK = Path("data/mseg_dataset/BDD/bdd100k/seg_relabeled/labels/train/000001_train_id.png")
TIMES = {
    "ade20k-150": 6,
    "bdd": 17,
    "cityscapes-19": 40,
    "coco-panoptic-133": 1,
    "idd-39": 17,
    "mapillary-public65": 7,
    "sunrgbd-37": 24,
}


def picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), shade, np.uint8)).save(path)


def mask(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((64, 64), 255, np.uint8)
    for number, value in enumerate(ids):
        array[:, 16 * number : 16 * number + 16] = value
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_weights):
    """A small MSeg; training sets have the classes van, sky, car, in this order, and one more. And a config for it."""
    folder = tmp_path_factory.mktemp("mseg")
    with contextlib.chdir(folder):
        make_data()
        make_config(tiny_weights)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def config(place):
    return place / "config.py"


def make_data():
    data = Config.fromfile(CONFIGS / "_base_" / "data_mseg.py")
    training = [f"{name}-relabeled" for name in TIMES]
    cells = {
        "building": ("", "background"),
        "car": ("{car,  van}", "vehicle"),
        "road": ("", "background"),
        "sky": ("sky", "sky"),
        "unlabeled": ("", ""),
    }
    rows = [["Parent", *training, "universal", *TESTS]]
    rows += [["x", *[own] * 7, name, *[test] * 6] for name, (own, test) in cells.items()]
    TAXONOMY.parent.mkdir(parents=True)
    TAXONOMY.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    lists = TAXONOMY.parent.parent / "dataset_lists"
    for name in [*training, *TESTS]:
        (lists / name / "list").mkdir(parents=True)
        classes = ["van", "sky", "car", "cloud"] if name in training else ["background", "vehicle", "sky"]
        (lists / name / f"{name}_names.txt").write_text("\n".join(classes) + "\n")
    for entry in entries(data.train_dataloader, "MSegDataset"):
        root, prefix = Path(entry.data_root), entry.data_prefix
        folder = "aachen" if "cityscapes" in entry.dataset_name else "."
        for number in (1, 2):
            stem = f"00000{number}"
            picture(root / prefix.img_path / folder / f"{entry.img_prefix}{stem}{entry.img_suffix}", 90 * number)
            name = f"{entry.seg_map_prefix}{stem}{entry.seg_map_suffix}"
            mask(root / prefix.seg_map_path / folder / name, [0, 1, 2, 3])
    for entry in entries(data.test_dataloader, "MSegDataset"):
        picture(Path(entry.data_root, "img", "a.png"), 120)
        mask(Path(entry.data_root, "gt", "a.png"), [0, 1, 2])
        (lists / entry.dataset_name / "list" / "val.txt").write_text("img/a.png gt/a.png\n")


def make_config(tiny_weights):
    """A config of the published data and a tiny model."""
    config = Config.fromfile(CONFIGS / "ff_tiny_mbrsc.py")
    data = Config.fromfile(CONFIGS / "_base_" / "data_mseg.py")
    config.train_dataloader = dict(data.train_dataloader, num_workers=0, persistent_workers=False)
    config.test_dataloader = dict(data.test_dataloader, num_workers=0)
    config.test_evaluator = data.test_evaluator
    for part in (config.train_dataloader, config.test_dataloader):
        for dataset in entries(part, "MSegDataset"):
            dataset.serialize_data = False
        for kind in ("RandomResize", "Resize"):
            for step in entries(part, kind):
                step.scale = (64, 64)
        for step in entries(part, "RandomCrop"):
            step.crop_size = (32, 32)
    colors = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 0, 0]]
    config.model.update(type="MultiDomainEncoderDecoder", taxonomy=str(TAXONOMY), domains=TESTS)
    config.model.data_preprocessor.size = (32, 32)
    config.model.decode_head.update(num_classes=4, palette=colors, d_vae={"weights": str(tiny_weights)})
    config.param_scheduler = []
    config.dump("config.py")


def test_training_and_test_on_the_published_layout(config, cli):
    cli("segmentor", "train", config, "--work-dir", "work", "--max-iters", 1)
    printed = cli(
        "segmentor", "test", config, "--work-dir", "work", "--load-from", "work/iter_1.pth", "--out", "scores.json"
    )
    report = json.loads(Path("scores.json").read_text())
    assert list(report["sets"]) == TESTS and report["images"] == 6
    means = [part["mIoU"] for part in report["sets"].values()]
    assert all(list(part["classes"]) == ["background", "vehicle", "sky"] for part in report["sets"].values())
    assert report["h_mean"] == pytest.approx(0 if 0 in means else 6 / sum(1 / mean for mean in means))
    assert "wilddash-19 " in printed and f"h_mean {report['h_mean']:.4f}" in printed


def test_training_sets_as_published(place):
    data = Config.fromfile(CONFIGS / "_base_" / "data_mseg.py")
    repeated = data.train_dataloader.dataset.datasets
    assert {one.dataset.dataset_name: one.times for one in repeated} == {
        f"{name}-relabeled": times for name, times in TIMES.items()
    }
    for one in repeated:
        steps = [{"type": "ReadImage"}, {"type": "ReadAnnotations"}, {"type": "PackSegInputs"}]
        entry = {**one.dataset, "serialize_data": False}
        dataset = DATASETS.build({**entry, "pipeline": steps})
        assert len(dataset) == 2 and dataset.metainfo["classes"] == UNIVERSAL
        found = dataset[0]["data_samples"].gt_sem_seg.data[0, 0, ::16].tolist()
        assert found == [1, 3, 1, 255]  # van and car are one universal class, cloud is none
        plain = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
        again = DATASETS.build({**entry, "pipeline": plain})[0]["data_samples"].gt_sem_seg.data
        assert again[0, 0, ::16].tolist() == found  # mmseg's own reader
    assert Path(dataset.get_data_info(0)["img_path"]).name == "img-000001.jpg"
    assert Path(dataset.get_data_info(0)["seg_map_path"]).name == "00000001.png"


def test_lists_of_stems_and_of_pairs(place):
    entry = {
        "type": "MSegDataset",
        "dataset_name": "cityscapes-19-relabeled",
        "taxonomy": str(TAXONOMY),
        "data_root": "data/mseg_dataset/Cityscapes",
        "pipeline": [],
        "img_suffix": "_leftImg8bit.png",
        "seg_map_suffix": "_gtFine_labelIds.png",
        "data_prefix": {"img_path": "leftImg8bit/train", "seg_map_path": "gtFine_19cls_relabeled/train"},
    }
    pair = (
        "leftImg8bit/train/aachen/000002_leftImg8bit.png gtFine_19cls_relabeled/train/aachen/000002_gtFine_labelIds.png"
    )
    for line in ("aachen/000002", pair):
        Path("list.txt").write_text(line + "\n")
        dataset = DATASETS.build({**entry, "ann_file": str(Path("list.txt").absolute())})
        assert [Path(item["img_path"]).name for item in dataset.load_data_list()] == ["000002_leftImg8bit.png"]
    for line, words in (
        ("aachen/7", r"list\.txt: line 2: file not found: aachen/7_left"),
        ("a b c", "line 2: 3 words"),
        ("../../x", "line 2: path leaves the data root"),
        ("a.png b.png", "line 2: file not found"),
    ):
        Path("list.txt").write_text(f"aachen/000002\n{line}\n")
        with pytest.raises(InputError, match=words):
            DATASETS.build({**entry, "ann_file": str(Path("list.txt").absolute())})


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (TAXONOMY, "a,b\n", "MSeg_master.tsv: needs tab-separated columns, one of them 'universal'"),
        (TAXONOMY, None, "MSeg_master.tsv: No such file"),
        (TAXONOMY, "universal\ncar\ncar\n", "MSeg_master.tsv: line 3: universal class car a second time"),
        (TAXONOMY, "universal\ncar\n", "no column "),
        ("voc2012", "background\nsky\n", "column voc2012: vehicle is no class of .*voc2012_names.txt; take both files"),
        ("voc2012", "sky\nsky\n", "voc2012_names.txt: class sky stands there twice"),
        ("bdd-relabeled", "van\nsky\n", "column bdd-relabeled: car, of universal class 'car', is no class of "),
        ("bdd-relabeled", None, "bdd-relabeled_names.txt: cannot read the list"),
        (MASK, None, "bdd-relabeled: file not found"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_work(config, cli, file, text, words):
    lists = TAXONOMY.parent.parent / "dataset_lists"
    path = Path(file) if "/" in str(file) else lists / file / f"{file}_names.txt"
    path.unlink() if text is None else path.write_text(text)
    line = cli.refused("segmentor", "train", config, "--work-dir", "work")
    assert re.search(words, line), line
    assert not Path("work").exists()


def test_a_mask_with_other_ids_is_refused(config, cli):
    mask(Path("data/mseg_dataset/SUNRGBD/semseg-relabeled37/train/00000002.png"), [0, 7])
    line = cli.refused("segmentor", "train", config, "--work-dir", "work")
    assert "00000002.png" in line and "7" in line


def test_universal_ids(place):
    names = read_names(TAXONOMY.parent.parent / "dataset_lists" / "bdd-relabeled" / "bdd-relabeled_names.txt")
    assert universal_ids(str(TAXONOMY), "bdd-relabeled", names) == {0: 1, 1: 3, 2: 1, 3: 255, 255: 255}
    assert read_taxonomy(str(TAXONOMY))[0] == UNIVERSAL


def test_scores_of_several_sets():
    metric = MSegMetric("", {"one": ["a", "b"], "two": ["c", "d"], "none": ["e", "f"]})

    def sample(domain, found, true):
        return {
            "domain": domain,
            "pred_sem_seg": {"data": torch.tensor([found])},
            "gt_sem_seg": {"data": torch.tensor([true])},
        }

    metric.process({}, [sample("one", [0, 0, 1, 1], [0, 1, 1, 255]), sample("two", [0, 0], [0, 0])])
    with pytest.raises(InputError, match="a sample is of domain sea, not of one, two"):
        metric.process({}, [sample("sea", [0], [0])])
    scores = metric.compute_metrics(metric.results)
    assert scores["one/mIoU"] == 0.5 and scores["one/IoU/b"] == 0.5 and scores["two/mIoU"] == 1
    assert np.isnan(scores["h_mean"])
    metric.process({}, [sample("none", [0, 0, 0, 0], [0, 0, 1, 1])])
    assert metric.compute_metrics(metric.results)["h_mean"] == pytest.approx(3 / (1 / 0.5 + 1 / 1 + 1 / 0.25))

"""What the segmentor's half makes of people's files: as the other half does."""

import json

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS
from PIL import Image

from segmentation.config import load_config
from tests.odd_files import TURN
from tests.segmentation.chain import filter_options


def segmentor(chain, task, *more):
    return ["segmentor", task, chain.config, "--work-dir", chain.root / "work", *more]


def rewrite(folder, change):
    for path in sorted(folder.iterdir()):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def test_the_pipeline_gives_the_arrays_of_mmseg(make_chain):
    """Equal to the bit for ordinary files, whatever the format."""
    chain = make_chain()
    for path in sorted((chain.root / "img_train").iterdir())[1:]:
        Image.open(path).save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
    data = {
        "type": "MaskDataset",
        "classes": str(chain.table),
        "data_root": str(chain.root),
        "data_prefix": {"img_path": "img_train", "seg_map_path": "label_train"},
    }
    ours = DATASETS.build({**data, "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]})
    assert [type(step).__name__ for step in ours.pipeline.transforms] == ["ReadImage", "ReadAnnotations"]
    for index in range(len(ours)):
        item = ours.get_data_info(index)
        theirs = LoadAnnotations()(LoadImageFromFile()(dict(item, seg_fields=[])))
        mine = ours[index]
        assert mine.keys() - {"valid"} == theirs.keys() and mine["img"].dtype == theirs["img"].dtype
        assert (mine["img"] == theirs["img"]).all() and (mine["gt_seg_map"] == theirs["gt_seg_map"]).all()
        assert mine["img_shape"] == theirs["img_shape"] and mine["seg_fields"] == theirs["seg_fields"]
        assert mine["img"].flags.c_contiguous


def test_a_foreign_config_reads_through_the_same_reader(make_chain, tmp_path):
    chain = make_chain()
    config = load_config(str(chain.config))
    assert [step.type for step in config.test_dataloader.dataset.pipeline[:2]] == ["ReadImage", "ReadAnnotations"]
    text = (
        chain.config.read_text()
        .replace('"segmentation", ', "")
        .replace('dict(type="LoadImageFromFile")', 'dict(type="LoadImageFromFile", color_type="grayscale")', 1)
    )
    other = tmp_path / "foreign.py"
    other.write_text(text)
    config = load_config(str(other))
    assert config.train_dataloader.dataset.pipeline[0].type == "LoadImageFromFile"  # what we do not understand stays
    config.dump(tmp_path / "saved.py")
    assert "segmentation" in Config.fromfile(tmp_path / "saved.py").custom_imports.imports


@pytest.mark.parametrize("ignore", [9, 0])
def test_the_tables_id_to_ignore_holds_in_test_training_and_filter(cli, make_chain, ignore):
    """Masks with another id to ignore, in 16 bits, give what masks with 255 give."""
    chain = make_chain()
    names = json.loads(chain.table.read_text())["classes"]
    out, results = chain.root / "metrics.json", []
    for index in (255, ignore):
        if index != 255:
            chain.table.write_text(json.dumps({"classes": names, "ignore_index": index}))
        for split in ("train", "test"):
            rewrite(
                chain.root / f"label_{split}",
                lambda ids, index=index: np.where(
                    ids == 255, index, np.where(ids == ignore, 255 if index == 255 else index, ids)
                ).astype(np.uint16),
            )
        cli(*segmentor(chain, "test", "--load-from", chain.weights, "--out", out))
        if ignore == 9:
            cli(*segmentor(chain, "train", "--work-dir", chain.root / str(index)))
        cli("filter", *filter_options(chain, out=f"filtered_{index}"))
        results.append(json.loads(out.read_text())["classes"])
    assert json.dumps(results[0]) == json.dumps(results[1])
    if ignore == 9:
        first, second = (
            torch.load(chain.root / folder / "iter_2.pth", weights_only=False)["state_dict"] for folder in ("255", "9")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    for path in sorted((chain.root / "filtered_255").glob("*.png")):
        ids, own = (
            np.array(Image.open(chain.root / folder / path.name)) for folder in ("filtered_255", f"filtered_{ignore}")
        )
        assert (np.where(ids == 255, ignore, ids) == own).all() and (own == ignore).any()


def test_orientation_is_not_applied_by_the_segmentor(cli, make_chain):
    chain = make_chain()
    out = chain.root / "metrics.json"
    scores = []
    for _ in range(2):
        said = cli(*segmentor(chain, "test", "--load-from", chain.weights, "--out", out))
        scores.append(json.loads(out.read_text())["classes"])
        for path in (chain.root / "img_test").iterdir():
            Image.open(path).save(path, exif=TURN)
    assert scores[0] == scores[1] and "3 of 3 pairs have an EXIF tag" in said


def test_a_damaged_mask_met_in_the_work_is_named(cli, make_chain):
    """Where files are not opened before, too: one line."""
    chain = make_chain()
    path = chain.root / "label_test/r1.png"
    Image.new("L", (7, 5)).save(path)
    line = cli.refused(*segmentor(chain, "test", "--load-from", chain.weights, "--unchecked"))
    assert "r1.png" in line and "7 x 5" in line and "24" in line


@pytest.mark.parametrize("case", ["outside", "link"])
def test_lists_that_leave_the_data_root(cli, make_chain, case):
    chain = make_chain()
    outside = chain.root.parent / f"{chain.root.name}_outside.png"
    (chain.root / "img_test/r0.png").rename(outside)
    written = f"../{outside.name}"
    if case == "link":
        (chain.root / "img_test/r0.png").symlink_to(outside)
        written = "img_test/r0.png"
    (chain.root / "list.json").write_text(json.dumps({"target": written, "source": "label_test/r0.png"}))
    options = ["--load-from", chain.weights, "--cfg-options", "test_dataloader.dataset.ann_file=list.json"]
    line = cli.refused(*segmentor(chain, "test", *options))
    says = f"leads by a link to {outside}" if case == "link" else "path leaves the data root"
    assert "list.json: line 1: " in line and says in line
    if case == "link":
        cli(*segmentor(chain, "test", *options, "test_dataloader.dataset.follow_links=True"))

"""--start-strength: an image painted over its item's own image, noised by a share of the steps."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.build import create_model
from cldm.data.pairs import PairedImages
from cldm.synthesis.options import SamplingOptions, SynthesisOptions
from cldm.synthesis.run import synthesize
from common.errors import InputError
from common.rasters import write_geotiff
from ldm.models.sampling import sample
from tests.conftest import SMALL
from tests.synthesis.conftest import close, images, records


@pytest.fixture(scope="module")
def data(scenes, tmp_path_factory):
    """The scenes: each line of their list names an image (target), too."""
    folder = tmp_path_factory.mktemp("over") / "data"
    shutil.copytree(scenes, folder)
    return folder


@pytest.fixture(scope="module")
def over(command, data):
    def build(out, *more):
        return command(out, "--data-root", data, "--txt-file", data / "inference_set_items.json", *more)

    return build


def distance(folder, data):
    """Mean distance in gray levels of images from those that they were painted over."""
    found = []
    for record in records(folder):
        start = np.asarray(Image.open(record["start"]).convert("RGB"), np.float32)
        found.append(np.abs(images(folder)[f"{record['name']}.png"] - start).mean())
    return np.mean(found)


def test_less_of_the_image_is_left_the_stronger_it_is_noised(cli, over, data, tmp_path):
    strengths = ("0.1", "0.5", "0.9")
    for strength in strengths:
        cli("inference", *over(tmp_path / strength, "--ddim-steps", 10, "--start-strength", strength))
    found = [distance(tmp_path / strength, data) for strength in strengths]
    assert found[0] < found[1] < found[2]
    for record in records(tmp_path / "0.5"):
        assert record["start_strength"] == 0.5 and record["steps"] == 10 and record["start_hash"]


def test_an_image_does_not_depend_on_its_batch_and_a_changed_start_is_told(cli, over, data, tmp_path):
    how = ("--ddim-steps", 4, "--start-strength", 0.5, "--reuse-encoder", "branches", "--key-steps", "every-2")
    for batch in (1, 8):
        cli("inference", *over(tmp_path / str(batch), *how, "--batch-size", batch))
    one, eight = images(tmp_path / "1"), images(tmp_path / "8")
    assert one.keys() == eight.keys() and all(close(one[name], eight[name]) for name in one)
    said = cli.refused("inference", *over(tmp_path / "1", "--ddim-steps", 4))
    assert "start_strength 0.5, not 1" in said

    start = records(tmp_path / "1")[0]["start"]
    kept = Image.open(start).convert("RGB")
    kept.rotate(180).save(start)
    said = cli.refused("inference", *over(tmp_path / "1", *how))
    kept.save(start)
    assert "was made with another start than" in said and start in said


def test_what_cannot_be_painted_over_is_refused_before_the_work(cli, over, data, tmp_path):
    items = [json.loads(line) for line in (data / "inference_set_items.json").read_text().splitlines()]
    del items[1]["target"]
    (data / "none.json").write_text("\n".join(map(json.dumps, items)))
    said = cli.refused("inference", *over(tmp_path / "out", "--txt-file", data / "none.json", "--start-strength", 0.5))
    assert "line 2, field target: missing" in said and "--start-strength" in said
    said = cli.refused("inference", *over(tmp_path / "out", "--start-strength", 0.1))
    assert "--start-strength 0.1: leaves none of 3 --ddim-steps" in said
    said = cli.refused("inference", *over(tmp_path / "out", "--start-strength", 1.5))
    assert "--start-strength" in said
    assert not (tmp_path / "out").exists()


def test_seeds_of_an_item_go_along(cli, over, data, tmp_path):
    path = data / "seeds.json"
    items = [json.loads(line) for line in (data / "inference_set_items.json").read_text().splitlines()][:1]
    path.write_text(json.dumps({**items[0], "seeds": [3, 4]}))
    arguments = over(tmp_path / "out", "--txt-file", path, "--ddim-steps", 2, "--start-strength", 0.5)
    cli("inference", *arguments)
    assert sorted(record["seed"] for record in records(tmp_path / "out")) == [3, 4]


def test_the_published_way_begins_with_noise_alone():
    assert not SamplingOptions().paints_over and SamplingOptions(steps=20, start_strength=0.3).steps_taken == 6


def test_what_strength_and_items_cannot_be_is_refused_in_python(scenes):
    with pytest.raises(InputError, match="above 0, up to 1"):
        SamplingOptions(start_strength=0)
    with pytest.raises(InputError, match="leaves none of 5"):
        SamplingOptions.of_preset("fast", start_strength=0.15)
    with pytest.raises(InputError, match=r"rectify_steps 4: there are 3 steps that start_strength 0\.15 takes of 20"):
        SynthesisOptions(
            ckpt="x", data_root="x", items="x", outdir="x", rectify=("a", "b"), steps=20, start_strength=0.15
        )
    model = create_model(SMALL, classes=str(scenes / "classes.json"))
    items = PairedImages(scenes, "inference_set_items.json", use_reference=True, multiple_of=32)
    with pytest.raises(InputError, match="items need start_image=True"):
        next(synthesize(model, items, SamplingOptions(steps=4, start_strength=0.5)))
    with pytest.raises(InputError, match="start_image: is of a synthesis"):
        PairedImages(scenes, "train_set_items.json", start_image=True, multiple_of=32)
    with pytest.raises(InputError, match="no image to paint over"):
        sample(model, {}, None, torch.zeros(1, 4, 8, 8), 4, strength=0.5)


def test_no_data_is_not_painted_over(cli, over, data, tmp_path):
    pytest.importorskip("rasterio")
    line = json.loads((data / "inference_set_items.json").read_text().splitlines()[0])
    numbers = np.array(Image.open(data / line["target"]).convert("RGB")).clip(1)
    numbers[:, :4] = 0
    write_geotiff(data / "img_train" / "gaps.tif", numbers, None, nodata=0)
    (data / "gaps.json").write_text(json.dumps({**line, "target": "img_train/gaps.tif"}))
    arguments = over(tmp_path / "out", "--txt-file", data / "gaps.json", "--start-strength", 0.5)
    said = cli.refused("inference", *arguments)
    assert "line 1, field target" in said and "has no data where its mask shows a class" in said
    mask = np.array(Image.open(data / line["source"]))
    mask[:, :4] = 255
    Image.fromarray(mask).save(data / "label_train" / "gaps.png")
    (data / "gaps.json").write_text(
        json.dumps({**line, "target": "img_train/gaps.tif", "source": "label_train/gaps.png"})
    )
    cli("inference", *arguments)

"""What can be known before the work of filter, evaluation and re-sampling is known before it."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.files import only_writer
from evaluation import inception
from post_processing import filter_passes
from scripts import filter as filter_script
from segmentation import inference
from tests.children import in_child
from tests.segmentation.chain import evaluate_options, filter_options, loss_options


def filtering(chain, *more):
    return ["filter", *filter_options(chain, *more)]


def evaluating(chain, *more):
    return ["evaluate_samples", *evaluate_options(chain, *more)]


def resample_options(chain, *more):
    masks = chain.root / "filtered"
    masks.mkdir(exist_ok=True)
    for image in (chain.root / "syn").iterdir():
        (masks / f"{image.stem}.png").write_bytes(
            (chain.root / f"label_train/{image.stem.split('_seed_')[0]}.png").read_bytes()
        )
    return [
        "resample",
        "--filtered-mask-path",
        masks,
        "--syn-img-path",
        chain.root / "syn",
        "--out-dir",
        chain.root / "resampled",
        "--classes",
        chain.table,
        "--min-valid",
        0,
        "--num-workers",
        1,
        *more,
    ]


@pytest.fixture
def no_work(monkeypatch):
    """No image reaches the segmentor."""
    monkeypatch.setattr(inference.Segmentor, "test_step", lambda *_: pytest.fail("the work has begun"))


def ignored(*folders):
    def change(chain):
        for path in (path for folder in folders for path in (chain.root / folder).iterdir()):
            with Image.open(path) as mask:
                size = mask.size
            Image.new("L", size, 255).save(path)

    return change


def truncated(path):
    def change(chain):
        file = (chain.root / path).with_suffix(".jpg")
        Image.effect_noise((32, 24), 90).convert("RGB").save(file)
        file.write_bytes(file.read_bytes()[:-200])
        file.with_suffix(".png").unlink()

    return change


def two_of_one_name(chain):
    chain.config.write_text(
        chain.config.read_text()
        .replace('type="MaskDataset"', 'type="BaseSegDataset"')
        .replace(f"classes={str(chain.table)!r},", "metainfo=dict(classes=['a', 'b', 'c', 'a', 'e']),")
    )


def names_in_weights(chain):
    two_of_one_name(chain)
    chain.config.write_text(chain.config.read_text().replace("metainfo=dict(classes=['a', 'b', 'c', 'a', 'e']),", ""))
    torch.save({**torch.load(chain.weights), "meta": {"dataset_meta": {"classes": list("abcab")}}}, chain.weights)


def of_another_size(chain):
    Image.new("RGB", (9, 8)).save(chain.root / "img_train/r1.png")


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (filtering, ignored("label_train"), "no mask shows a class"),
        (evaluating, ignored("label_test"), "no mask shows a class"),
        (resample_options, ignored("label_train"), "no mask shows a class"),
        (filtering, two_of_one_name, "two classes named a"),
        (filtering, names_in_weights, "weights.pth: two classes named a"),
        (evaluating, truncated("img_train/r0.png"), "img_train/r0.jpg: cannot be read"),
        (filtering, truncated("syn/r0_seed_1.png"), "syn/r0_seed_1.jpg: cannot be read"),
        (resample_options, truncated("syn/r0_seed_1.png"), "syn/r0_seed_1.jpg: cannot be read"),
        (filtering, of_another_size, "r1.png is 9 x 8 px"),
    ],
)
def test_it_is_refused(cli, make_chain, no_work, options, change, message):
    chain = make_chain()
    change(chain)
    assert message in cli.refused(*options(chain))
    assert not [path for folder in ("out", "eval", "resampled") for path in chain.root.glob(f"{folder}/[!.]*")]


@pytest.mark.parametrize(
    ("options", "path"), [(evaluating, "img_train/r0.png"), (resample_options, "syn/r0_seed_1.png")]
)
def test_damaged_images_are_left_out_on_demand(cli, make_chain, options, path):
    chain = make_chain()
    truncated(path)(chain)
    assert f"{path.removesuffix('.png')}.jpg: cannot be read" in cli(*options(chain, "--skip-invalid"))


def test_one_image_has_no_fid(cli, make_chain, no_work, monkeypatch):
    chain = make_chain()
    for path in list((chain.root / "img_train").iterdir())[1:]:
        path.unlink()
    monkeypatch.setattr(inception, "inception_features", lambda path: nn.Identity())
    assert "FID and KID need at least two images, --train-img-path has 1" in cli.refused(
        *evaluating(chain, "--inception-weights", "weights")
    )


@pytest.mark.parametrize("score", ["NaN", "-3", "1.5", '"0.5"', "[]", "true"])
def test_metrics_that_are_none(cli, make_chain, score):
    chain = make_chain()
    text = json.dumps({"classes": {f"name {c}": {"IoU": 0.5} for c in range(5)}}).replace("0.5", score, 1)
    (chain.root / "metrics.json").write_text(text)
    options = resample_options(chain, "--metrics", chain.root / "metrics.json", "--worst", 1)
    assert "metrics.json" in cli.refused(*options)


@pytest.mark.parametrize(
    ("options", "out"), [(filtering, "out"), (evaluating, "eval"), (resample_options, "resampled")]
)
def test_the_second_in_a_folder_says_who_works_there(cli, make_chain, options, out):
    chain = make_chain()
    temporary = chain.root / out / ".r0_seed_1.abc.tmp.png"
    with only_writer(chain.root / out, "--out"):
        temporary.write_bytes(b"of the first")
        assert f"process {os.getpid()}" in cli.refused(*options(chain))
        assert temporary.exists()


def test_losses_do_not_depend_on_where_a_run_stopped(cli, make_chain, monkeypatch):
    chain = make_chain()
    cli(*filtering(chain, "--save-loss", chain.root / "whole", "--batch-size", 4))
    for path in (chain.root / "out").glob("*.png"):
        path.rename(chain.root / "unused" / path.name)
    write = filter_passes.write_array

    def write_and_die(values, path):
        if len(list((chain.root / "loss").glob("*.npy"))) == 3:
            os._exit(9)
        write(values, path)

    options = [*filtering(chain, "--save-loss", chain.root / "loss", "--batch-size", 4)[1:]]
    with monkeypatch.context() as patch:
        patch.setattr(filter_passes, "write_array", write_and_die)
        assert in_child(lambda: filter_script.main(list(map(str, options)))) == 9
    cli("filter", *options)
    for path in (chain.root / "whole").glob("*.npy"):
        assert path.read_bytes() == (chain.root / "loss" / path.name).read_bytes()
    assert len(list((chain.root / "loss").glob("*.npy"))) == 6


def test_losses_in_a_used_folder_are_those_of_this_run(cli, make_chain):
    chain = make_chain()
    cli(*filtering(chain))
    (chain.root / "loss").mkdir()
    stale = chain.root / "loss/r0_seed_1.npy"
    np.save(stale, np.zeros((24, 32), np.float16))
    cli(*filtering(chain, "--save-loss", chain.root / "loss"))
    assert np.load(stale).any()


def test_a_stopped_resampling_leaves_no_process(cli, make_chain, monkeypatch):
    chain = make_chain()
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process is started, which would have to be ended"))
    cli(*resample_options(chain, "--num-workers", 256))


def test_losses_that_the_filter_did_not_write(cli, make_chain):
    chain = make_chain()
    cli(*filtering(chain, "--save-loss", chain.root / "loss"))
    path = chain.root / "loss/r0_seed_1.npy"
    options = loss_options(chain)
    for content in (
        b"",
        b"\x93NUMPY",
        np.zeros(3),
        np.zeros((24, 32)),
        np.full((24, 32), np.nan, np.float16),
        np.full((24, 32), -1, np.float16),
        np.array([[{}]]),
        np.zeros((24, 32), np.float16),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content, allow_pickle=True)
        said = cli.refused("filter", *options)
        assert str(path) in said and f"remove {path}" in said
    assert str(path) in cli("filter", *options, "--skip-invalid")


@pytest.mark.parametrize("path", ["img_train/r1.png", "label_train/r1.png"])
def test_real_files_changed_under_their_names_are_noticed(cli, make_chain, path):
    chain = make_chain()
    cli(*filtering(chain))
    with Image.open(chain.root / path) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(chain.root / path)
    assert "another real images" in cli.refused(*filtering(chain))


def test_an_image_painted_again_counts_by_its_newer_record_whichever_process_wrote(cli, make_chain):
    chain = make_chain()
    cli(*filtering(chain))
    (chain.root / "out/.filter/syn.0.jsonl").rename(chain.root / "out/.filter/syn.1.jsonl")  # as of a second process
    image = chain.root / "syn/r0_seed_1.png"
    Image.fromarray(np.asarray(Image.open(image))[::-1]).save(image)
    cli(*filtering(chain))
    made = (chain.root / "out/r0_seed_1.png").stat().st_mtime_ns
    cli(*filtering(chain))
    assert (chain.root / "out/r0_seed_1.png").stat().st_mtime_ns == made

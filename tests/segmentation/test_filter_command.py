import json
import os
import pickle
import resource
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import command as cli
from common.errors import InputError
from post_processing.filter import FilterOptions, filter_images
from scripts import filter as filter_script
from segmentation.inference import open_segmentor
from tests.children import in_child
from tests.segmentation.chain import numpy_rule


def arguments(chain, **changes):
    options = {
        "--real-img-path": chain.root / "img_train",
        "--real-label-path": chain.root / "label_train",
        "--syn-img-path": chain.root / "syn",
        "--syn-mask-path": chain.root / "label_train",
        "--filtered-mask-path": chain.root / "out",
        "--num-workers": 0,
        "--device": "cpu",
    } | {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
    given = [str(part) for key, value in options.items() if value is not None for part in (key, value)]
    return [str(chain.config), str(chain.weights), *given]


def run(argv):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: filter_script.main(argv))
    return stop.value.code


def masks(folder):
    return {path.stem: np.array(Image.open(path)) for path in sorted(folder.glob("[!.]*.png"))}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("num_classes", [5, 16, 24])
def test_masks_follow_the_rule_bit_for_bit(make_chain, num_classes):
    chain = make_chain(num_classes)
    assert run(arguments(chain, batch_size=2)) == 0
    expected, mean = numpy_rule(chain, 1.25)
    assert_same(masks(chain.root / "out"), expected)
    stats = json.loads((chain.root / "out/filter_stats.json").read_text())
    classes = list(stats["per_class"].values())
    np.testing.assert_allclose([entry["mean_loss_real"] for entry in classes], mean, rtol=1e-6)
    for c, entry in enumerate(classes):
        assert entry["kept"] == sum((mask == c).sum() for mask in expected.values())
        assert entry["kept"] == sum(image["kept"][c] for image in stats["images"].values())
        assert entry["dropped"] == sum(image["dropped"][c] for image in stats["images"].values()) > 0
    assert "<svg" in (chain.root / "out/filter_stats.svg").read_text()


def test_a_larger_margin_keeps_more_and_needs_no_segmentor(make_chain):
    chain = make_chain()
    assert run(arguments(chain, save_loss=chain.root / "loss")) == 0
    kept = None
    for margin in (0.5, 1.0, 1.25, 2.0, 100.0):
        out = chain.root / f"out_{margin}"
        assert (
            run(
                [
                    "--from-loss",
                    str(chain.root / "loss"),
                    "--syn-mask-path",
                    str(chain.root / "label_train"),
                    "--filtered-mask-path",
                    str(out),
                    "--tolerance-margin",
                    str(margin),
                ]
            )
            == 0
        )
        now = {name: mask != 255 for name, mask in masks(out).items()}
        if margin == 1.25:  # as direct, but for losses that round to float16 across the limit
            expected = numpy_rule(chain, margin)[0]
            assert np.mean([(now[name] != (mask != 255)).mean() for name, mask in expected.items()]) < 1e-3
        assert kept is None or all((now[name] >= kept[name]).all() for name in now)
        assert kept is None or margin == 100 or any((now[name] > kept[name]).any() for name in now)
        kept = now
    assert all((kept[name] == (mask != 255)).all() for name, mask in numpy_rule(chain, 100.0)[0].items())


def test_it_is_called_from_python(make_chain):
    chain = make_chain()
    root = chain.root
    folders = {"syn_mask_path": root / "label_train", "save_loss": root / "loss", "syn_img_path": root / "syn"}
    done = filter_images(
        FilterOptions(
            config=str(chain.config),
            checkpoint=str(chain.weights),
            real_img_path=root / "img_train",
            real_label_path=root / "label_train",
            filtered_mask_path=root / "out",
            num_workers=0,
            **folders,
        ),
        lambda: open_segmentor(chain.config, chain.weights, device="cpu"),
    )
    expected = numpy_rule(chain, 1.25)[0]
    assert done.names == sorted(expected) and "6 masks in" in done.summary
    assert_same(masks(root / "out"), expected)
    options = {"from_loss": root / "loss", "syn_mask_path": root / "label_train"}
    again = filter_images(FilterOptions(**options, filtered_mask_path=root / "again", tolerance_margin=2))
    assert again.kept_share > done.kept_share
    with pytest.raises(InputError, match=r"^filtered_mask_path .*: holds masks filtered with another tolerance_margin"):
        filter_images(FilterOptions(**options, filtered_mask_path=root / "again"))
    with pytest.raises(InputError, match=r"^missing: config, checkpoint, real_img_path"):
        FilterOptions(syn_mask_path=root, filtered_mask_path=root)


def test_a_killed_run_goes_on_where_it_stopped(make_chain, monkeypatch):
    chain = make_chain()
    save, saved = Image.Image.save, []

    def save_and_die(image, path, **options):
        saved.append(path)
        if len(saved) == 3:
            Path(path).write_bytes(b"\x89PNG half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save_and_die)
    assert in_child(lambda: filter_script.main(arguments(chain))) == -signal.SIGKILL
    expected = numpy_rule(chain, 1.25)[0]
    assert len(masks(chain.root / "out")) == 2  # whole, and nothing of the third
    with next((chain.root / "out/.filter").glob("syn.*")).open("a") as file:
        file.write('\n{"name": "r1_seed_1", "tot')  # a line that broke off
    monkeypatch.setattr(Image.Image, "save", lambda image, path: (saved.append(path), save(image, path)))
    assert run(arguments(chain)) == 0
    assert len(saved) == len(expected) - 2
    assert not list((chain.root / "out").glob(".*.png"))
    assert_same(masks(chain.root / "out"), expected)


def test_a_full_disk_leaves_nothing_half_written(make_chain, capfd):
    chain = make_chain()
    big = np.random.default_rng(0).integers(0, 5, (400, 400)).astype(np.uint8)  # a PNG beyond the limit below
    Image.fromarray(big).save(chain.root / "label_train/r2.png")
    for folder, name in (("img_train", "r2"), ("syn", "r2_seed_1"), ("syn", "r2_seed_2")):
        Image.fromarray(np.stack([big] * 3, axis=-1)).save(chain.root / folder / f"{name}.png")

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        cli.run(lambda: filter_script.main(arguments(chain)))

    assert in_child(work) == 2
    assert "disk full" in capfd.readouterr().err
    assert sorted(masks(chain.root / "out")) == ["r0_seed_1", "r0_seed_2", "r1_seed_1", "r1_seed_2"]
    assert not list((chain.root / "out").glob(".*.png"))
    assert run(arguments(chain)) == 0
    assert_same(masks(chain.root / "out"), numpy_rule(chain, 1.25)[0])


def test_two_processes_give_what_one_gives(make_chain, monkeypatch):
    chain = make_chain()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": 0}.items():
        monkeypatch.setenv(key, str(value))

    def both():
        rank = os.fork()  # the child is rank 0
        os.environ["RANK"] = "1" if rank else "0"
        filter_script.main(arguments(chain))
        if rank and os.waitpid(rank, 0)[1]:
            raise SystemExit(1)
        if not rank:
            os._exit(0)

    assert in_child(both) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    together = masks(chain.root / "out")
    assert run(arguments(chain, filtered_mask_path=chain.root / "alone")) == 0
    assert_same(together, masks(chain.root / "alone"))
    stats = [json.loads((chain.root / name / "filter_stats.json").read_text()) for name in ("out", "alone")]
    assert stats[0]["images"] == stats[1]["images"]
    for name, entry in stats[0]["per_class"].items():  # a convolution's last bit depends on the batch it is in
        assert entry == pytest.approx(stats[1]["per_class"][name], rel=1e-6)


def test_an_image_made_again_is_filtered_again(make_chain):
    chain = make_chain()
    assert run(arguments(chain)) == 0
    before = masks(chain.root / "out")
    name = "r1_seed_1"
    made = next((chain.root / "syn").glob(f"{name}.*"))
    pixels = np.array(Image.open(made))
    Image.fromarray(255 - pixels).save(made)
    written = {key: (chain.root / f"out/{key}.png").stat().st_mtime_ns for key in before}
    assert run(arguments(chain)) == 0
    after = masks(chain.root / "out")
    assert_same(after, numpy_rule(chain, 1.25)[0])
    assert (after[name] != before[name]).any()
    again = {key for key in before if (chain.root / f"out/{key}.png").stat().st_mtime_ns != written[key]}
    assert again == {name}


@pytest.mark.parametrize("unseen", ["ignore", "keep"])
def test_a_class_without_real_pixels_is_named(make_chain, capsys, unseen):
    chain = make_chain()
    syn_masks = chain.root / "syn_masks"
    (chain.root / "label_train").rename(syn_masks)
    (chain.root / "label_train").mkdir()
    for path in syn_masks.iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 3, 255, mask).astype(np.uint8)).save(chain.root / "label_train" / path.name)
    assert run(arguments(chain, syn_mask_path=syn_masks, unseen_class=unseen, classes=chain.table)) == 0
    assert "no real image shows name 3" in capsys.readouterr().err
    for name, mask in masks(chain.root / "out").items():
        there = np.array(Image.open(syn_masks / f"{name.split('_seed_')[0]}.png")) == 3
        assert there.any() and (mask[there] == (255 if unseen == "ignore" else 3)).all()


def test_jpg_names_and_images_of_another_size(make_chain):
    chain = make_chain()
    expected = numpy_rule(chain, 1.25)[0]
    for path in (chain.root / "syn").iterdir():
        image = Image.open(path)
        image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST).save(
            path.with_suffix(".jpg"), quality=100, subsampling=0
        )
        path.unlink()
    assert run(arguments(chain)) == 0
    found = masks(chain.root / "out")
    assert found.keys() == expected.keys()
    assert all(mask.shape == expected[name].shape for name, mask in found.items())
    assert np.mean([(mask == expected[name]).mean() for name, mask in found.items()]) > 0.9  # but for JPEG and resizing


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def other_weights(chain):
    torch.save({"state_dict": {"decode_head.conv_seg.weight": torch.zeros(7, 3, 1, 1)}}, chain.weights)


def a_beyond_id(chain):
    Image.fromarray(np.full((24, 32), 5, np.uint8)).save(chain.root / "label_train/r0.png")


def lone_image(folder, name):
    return lambda chain: Image.new("RGB", (8, 8), (1, 2, 3)).save(chain.root / folder / name)


def emptied(folder, pattern="*"):
    return lambda chain: [path.unlink() for path in (chain.root / folder).glob(pattern)]


def config_of(text):
    return lambda chain: chain.config.write_text(text)


BAD = {
    "image without mask": (lone_image("syn", "lost_seed_3.png"), "lost_seed_3.png: no mask lost.png under --syn-mask"),
    "mask without image": (emptied("syn", "r1*"), "r1.png: no image r1[_seed_<seed>] under --syn-img-path"),
    "real image without mask": (lone_image("img_train", "x.png"), "x.png: no mask x.png under --real-label-path"),
    "id beyond the classes": (a_beyond_id, "r0.png: class ids 5 are not in 0..4"),
    "empty folder": (emptied("syn"), "syn: empty"),
    "color mask": (lone_image("label_train", "r0.png"), "r0.png: has three channels that differ"),
    "damaged image": (lambda chain: (chain.root / "syn/r0_seed_1.png").write_bytes(b"no"), "r0_seed_1.png: cannot"),
    "not an mmseg config": (config_of("model = dict(target='x')"), "no model with a field"),
    "not a segmentor": (config_of("model = dict(type='SegDataPreProcessor')"), "PreProcessor is not a segmentor"),
    "no config": (lambda chain: chain.config.unlink(), "config.py: no such config"),
    "weights of another model": (other_weights, "weights of another model"),
    "weights that run code": (lambda chain: chain.weights.write_bytes(pickle.dumps(Harmful())), "refused and not run"),
    "same name twice": (lone_image("syn", "r0_seed_1.jpg"), "both r0_seed_1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_work(make_chain, capsys, monkeypatch, case):
    chain = make_chain()
    monkeypatch.chdir(chain.root)
    change, message = BAD[case]
    change(chain)
    assert run(arguments(chain)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not masks(chain.root / "out") and not Path("harm").exists()


def test_invalid_files_can_be_left_out(make_chain, capsys):
    chain = make_chain()
    expected = numpy_rule(chain, 1.25)[0]
    Image.new("RGB", (8, 8)).save(chain.root / "syn/lost_seed_3.png")
    (chain.root / "syn/r0_seed_1.png").write_bytes(b"no image")
    assert run([*arguments(chain), "--skip-invalid"]) == 0
    assert "lost_seed_3.png" in capsys.readouterr().err
    del expected["r0_seed_1"]
    assert_same(masks(chain.root / "out"), expected)
    assert len(json.loads((chain.root / "out/filter_stats.json").read_text())["skipped"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filtered_mask_path": "syn"}, "lies inside"),
        ({"tolerance_margin": 0}, "--tolerance-margin"),
        ({"syn_img_path": None}, "missing: --syn-img-path"),
        ({"real_img_path": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_bad_options_are_refused(make_chain, capsys, changes, message):
    chain = make_chain()
    changes = {key: chain.root / value if isinstance(value, str) else value for key, value in changes.items()}
    assert run(arguments(chain, **changes)) == 2
    assert message in capsys.readouterr().err


def test_another_margin_does_not_mix_into_a_finished_folder(make_chain, capsys):
    chain = make_chain()
    assert run(arguments(chain)) == 0
    before = masks(chain.root / "out")
    assert run(arguments(chain, tolerance_margin=2)) == 2
    assert "another --tolerance-margin" in capsys.readouterr().err
    for option in ("model.data_preprocessor.mean=[0,0,0]", "test_dataloader.dataset.pipeline.0.backend_args=None"):
        assert run([*arguments(chain), "--cfg-options", option]) == 2
        assert "another config" in capsys.readouterr().err
    assert_same(masks(chain.root / "out"), before)

"""Configs and options of segmentors: what runs, what is read as data, and what is refused in one line."""

import json
import random
import socket
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from mmseg.registry import MODELS
from PIL import Image
from torch.nn import functional as F

from segmentation.config import load_config
from tests.conftest import ROOT
from tests.faults.mutate import ODD_VALUES, command, observe


def refused(cli, chain, task, *options, config=None):
    given = ["--load-from", chain.weights] if task == "test" else []
    error = cli.refused("segmentor", task, config or chain.config, "--work-dir", chain.root / "work", *given, *options)
    assert not (chain.root / "work").exists()
    return error


# --- what runs code -------------------------------------------------------------------------------------------------
HARM = {
    "statement": "import pathlib\npathlib.Path({harm!r}).touch()\n",
    "call": "x = __import__('pathlib').Path({harm!r}).touch()\n",
    "attribute": "x = ().__class__\n",
    "built-in as a type": "custom_hooks = [dict(type=exec)]\n",
    "type": "custom_hooks = [dict(type='pathlib.Path', touch={harm!r})]\n",
    "undotted type": "custom_hooks = [dict(type='antigravity')]\n",
    "scope": "custom_hooks = [dict(type='evil.Hook')]\n",
    "import": "custom_imports = dict(imports=['evil'])\n",
    "filled in": "x = '{{{{ fileDirname }}}}'\n",
    "base": "_base_ = 'evil.py'\n",
}


@pytest.mark.parametrize("kind", HARM)
def test_a_config_among_results_is_data_unless_it_is_trusted(chain, cli, kind, monkeypatch):
    harm = chain.root / "harm"
    (chain.root / "evil.py").write_text(f"import pathlib\npathlib.Path({str(harm)!r}).touch()\n")
    monkeypatch.syspath_prepend(chain.root)
    chain.config.write_text(chain.config.read_text() + HARM[kind].format(harm=str(harm)))
    assert chain.weights.parent == chain.config.parent
    assert "--trust-config" in refused(cli, chain, "test")
    for script in ("filter", "evaluate_samples"):
        masks = [
            "--syn-img-path",
            chain.root / "syn",
            "--syn-mask-path",
            chain.root / "label_train",
            "--real-img-path",
            chain.root / "img_train",
            "--real-label-path",
            chain.root / "label_train",
            *(["--train-img-path", chain.root / "img_train"] if script == "evaluate_samples" else []),
            "--filtered-mask-path" if script == "filter" else "--out-dir",
            chain.root / "out",
        ]
        assert "--trust-config" in cli.refused(script, chain.config, chain.weights, *masks)
    assert not harm.exists()


def test_a_trusted_config_runs_and_one_away_from_results_too(chain, cli):
    text = chain.config.read_text() + "test_dataloader['batch_size'] = 1\n"
    chain.config.write_text(text)
    assert "line " in refused(cli, chain, "test")
    cli(
        "segmentor",
        "test",
        chain.config,
        "--load-from",
        chain.weights,
        "--work-dir",
        chain.root / "out",
        "--trust-config",
    )
    (chain.root / "mine").mkdir()
    (chain.root / "mine/config.py").write_text(text)
    cli(
        "segmentor",
        "test",
        chain.root / "mine/config.py",
        "--load-from",
        chain.weights,
        "--work-dir",
        chain.root / "out",
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs/mmseg").glob("[!b]*.py")), ids=lambda path: path.stem)
def test_what_a_training_writes_beside_its_weights_is_data(path, tmp_path):
    config = load_config(str(path))
    config.dump(str(tmp_path / path.name))
    (tmp_path / "iter_1.pth").touch()
    again = load_config(str(tmp_path / path.name))
    assert again.model == config.model and again.train_dataloader == config.train_dataloader


# --- options --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optim_wrapper.optimizr.lr=0.1", "did you mean optimizer?"),
        ("train_cfg.max_iter=3", "max_iter"),
        ("crop_size=(8,8)", "is read by nothing"),
        ("optim_wrapper.optimizer.lr=abc", "is no number"),
        ("optim_wrapper.optimizer.lr=-1", "optim_wrapper: ValueError: Invalid learning rate: -1"),
        ("optim_wrapper.optimizer.lr=nan", "finite"),
        ("optim_wrapper.optimizer.type=Nothing", "optim_wrapper: TypeError: a type that it names is not registered"),
        ("train_dataloader.batch_size=0", "field train_dataloader.batch_size: 0"),
        ("train_dataloader.batch_size=2.5", "field train_dataloader.batch_size: 2.5"),
        ("train_dataloader.num_workers=1000", "field train_dataloader.num_workers: 1000"),
        ("train_cfg.max_iters=0", "field train_cfg.max_iters: 0"),
        ("train_cfg.max_iters=99999999999999", "field train_cfg.max_iters"),
        ("train_dataloader.dataset.pipeline.2.crop_size=(900000,900000)", "lower batch_size or crop_size"),
        ("train_dataloader.dataset.pipeline.9.x=1", "no place of a list of 4"),
        ("train_dataloader.dataset.pipeline.2.crop_size=(-1,4)", "train_dataloader"),
        ("train_dataloader.dataset.pipeline=5", "train_dataloader"),
        ("train_dataloader.sampler.type=Nothing", "Nothing is not in the"),
        ("train_dataloader.dataset=5", "group of settings"),
        ("model.type=Nothing", "Nothing is not in the"),
        ("model=None", "model"),
        ("model.decode_head.loss_decode.class_weight=[1,2]", "the first training step"),
        ("model.decode_head.in_channels=7", "model"),
        ("model.decode_head.channel=7", "unexpected keyword argument 'channel'"),
        ("optim_wrapper.type=AmpOptimWrapper", "optim_wrapper"),
        ("param_scheduler.0.power=x", "param_scheduler"),
        ("default_hooks.checkpoint.interval=x", "is no number"),
        ("randomness.sed=3", "randomness.sed"),
        ("log_level=LOUD", "log_level"),
        ("custom_hooks=[5]", "custom_hooks"),
        ("__class__.x=3", "a key is written as names"),
        ("a..b=3", "a key is written as names"),
        ("x=" + "[" * 3000, "--cfg-options"),
        ("work_dir=a\nb", "characters that no name should have"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(chain, cli, option, message):
    assert message in refused(cli, chain, "train", "--cfg-options", option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("test_evaluator.iou_metrics=[nothing]", "metrics ['nothing'] is not supported"),
        ("model.test_cfg.mode=slyde", "the first test image"),
        ("test_dataloader.batch_size=-1", "test_dataloader.batch_size: -1"),
        ("model.decode_head.num_classes=5.0", "model"),
    ],
)
def test_options_of_tests_too(chain, cli, option, message):
    assert message in refused(cli, chain, "test", "--cfg-options", option)


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        (
            'train_cfg = dict(type="IterBasedTrainLoop", max_iters=2)',
            "train_cfg = dict(by_epoch=True, max_epochs=1)",
            ["--max-iters", 3],
            "trains by epochs",
        ),
        ("train_dataloader =", "unused =", [], "nothing to train with"),
        (
            'optim_wrapper = dict(type="OptimWrapper"',
            'optim_wrapper = dict(type="ApexOptimWrapper"',
            ["--precision", "bf16"],
            "is ApexOptimWrapper",
        ),
        ('dict(type="RandomCrop", crop_size=(16, 16)), ', "", ["--crop-size", 8], "has no RandomCrop"),
        ('type="MaskDataset", classes=', 'type="ADE20KDataset", unused=', [], "train_dataloader"),
        ("custom_imports = dict(", "exit(3)\ncustom_imports = dict(", ["--trust-config"], "SystemExit"),
    ],
)
def test_configs_that_cannot_work(chain, cli, old, new, options, message):
    text = chain.config.read_text()
    assert old in text
    chain.config.write_text(text.replace(old, new))
    assert message in refused(cli, chain, "train", *options)


def test_missing_data_of_a_stock_config(chain, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Path(mmseg.__file__).parent / ".mim/configs/fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py"
    assert "train_dataloader" in refused(cli, chain, "train", "--pretrained", "none", config=config)


# --- masks and images -----------------------------------------------------------------------------------------------
def test_masks_of_another_size_than_their_images(chain, cli):
    for split, task in (("train", "train"), ("test", "test")):
        Image.fromarray(np.zeros((24, 30), np.uint8)).save(chain.root / f"label_{split}/r0.png")
        error = refused(cli, chain, task)
        assert "is 32 x 24 px" in error and "30 x 24" in error


def test_masks_of_another_size_in_another_packages_data_set(chain, cli):
    text = chain.config.read_text().replace(
        f'type="MaskDataset", classes={str(chain.table)!r}, ',
        'type="BaseSegDataset", metainfo=dict(classes=list("abcde")), img_suffix=".png", ',
    )
    (chain.root / "mine").mkdir()
    (chain.root / "mine/config.py").write_text(text)
    for split, task in (("train", "train"), ("test", "test")):
        Image.fromarray(np.zeros((24, 30), np.uint8)).save(chain.root / f"label_{split}/r0.png")
        error = refused(cli, chain, task, config=chain.root / "mine/config.py")
        assert "32 x 24 px" in error and "30 x 24" in error


def test_no_mask_shows_a_class(chain, cli):
    for split, task in (("train", "train"), ("test", "test")):
        for mask in (chain.root / f"label_{split}").iterdir():
            Image.fromarray(np.full_like(np.array(Image.open(mask)), 255)).save(mask)
        assert "no mask shows a class" in refused(cli, chain, task)


def test_two_classes_of_one_name(chain, cli):
    chain.table.write_text(json.dumps({"classes": ["a", "b", "c", "d", "A"]}))
    for task in ("train", "test"):
        assert "duplicate names: a" in refused(cli, chain, task)


# --- several processes ----------------------------------------------------------------------------------------------
def test_launchers_without_their_processes(chain, cli, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert "torchrun" in cli.refused(
        "segmentor", "train", chain.config, "--work-dir", chain.root / "work", "--launcher", "pytorch"
    )
    assert "srun" in cli.refused(
        "segmentor", "train", chain.config, "--work-dir", chain.root / "work", "--launcher", "slurm"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_processes_on_cpus_train(chain, cli, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (
        ("RANK", 0),
        ("WORLD_SIZE", 1),
        ("LOCAL_RANK", 0),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", port),
    ):
        monkeypatch.setenv(name, str(value))
    try:
        cli(
            "segmentor",
            "train",
            chain.config,
            "--work-dir",
            chain.root / "work",
            "--launcher",
            "pytorch",
            "--cfg-options",
            "model.decode_head.norm_cfg.type=SyncBN",
            "model.decode_head.num_convs=1",
        )
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert (chain.root / "work/iter_2.pth").is_file()


# --- by the thousand ------------------------------------------------------------------------------------------------
def settings(tree, prefix=""):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield f"{prefix}{key}"
        yield from settings(value, f"{prefix}{key}.")


def mutated_options(chain, count, seed):
    """Settings of the config with odd values, and names that it does not have."""
    rng = random.Random(seed)
    keys = list(settings(load_config(str(chain.config))._cfg_dict.to_dict()))
    for _ in range(count):
        key = rng.choice(keys)
        if rng.random() < 0.2:
            place = rng.randrange(len(key))
            key = key[:place] + rng.choice(("", "x", ".", "0", "_")) + key[place + 1 :]
        value = rng.choice(ODD_VALUES)
        yield f"{key}={value}"


def test_mutated_options_end_in_one_line(chain, request):
    count, seed = request.config.getoption("--mutations") or 12, request.config.getoption("--seed")
    endings = []
    for number, option in enumerate(mutated_options(chain, count, seed)):  # a thousand take some minutes
        task = ("test", "--load-from", chain.weights) if number % 3 == 0 else ("train", "--max-iters", 1)
        ending = observe(
            command(
                "segmentor",
                *task,
                chain.config,
                "--work-dir",
                chain.root / "work",
                "--unchecked",
                "--cfg-options",
                option,
            ),
            seconds=60,
        )
        endings.append(ending.kind)
        assert ending.fine, f"{option[:200]}: {ending}"
    assert "refused" in endings


def test_a_unet_of_any_size_is_mmsegs_where_that_takes_the_image():
    config = load_config(str(ROOT / "configs/mmseg/tiny_unet.py"))
    own = config.model.backbone | {"norm_cfg": {"type": "BN"}}
    any_size, theirs = (MODELS.build({**own, "type": kind}) for kind in ("AnySizeUNet", "UNet"))
    for unet in (any_size, theirs):
        unet.eval()  # which returns nothing in mmseg's
    any_size.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 40, 24)
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(any_size(x), theirs(x), strict=True))
        odd = any_size(x[:, :, :37, :19])
        padded = theirs(F.pad(x[:, :, :37, :19], (0, 5, 0, 3), mode="replicate"))
        assert odd[-1].shape == (1, own.base_channels, 37, 19) and odd[0].shape[2:] == (5, 3)
        assert torch.equal(odd[-1], padded[-1][:, :, :37, :19])
    with pytest.raises(AssertionError, match="divisible"):
        theirs(x[:, :, :37])

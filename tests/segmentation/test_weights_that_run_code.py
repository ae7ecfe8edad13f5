"""Files of weights that would run something, given to each command that reads weights: refused, and not run."""

import os
import shutil

import pytest
import torch
from mmengine.runner.checkpoint import get_torch_safe_globals

from segmentation.judge import open_judge
from tests.conftest import SMALL
from tests.segmentation.chain import compare_options, filter_options


class Call:
    """An object whose unpickling calls a function; functions and arguments may be such objects themselves."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def system(marker):
    return Call(os.system, f"touch {marker}")


def roundabout(marker):
    """Only names that torch and mmengine allow: ``getattr`` finds ``exec``, and a rebuild function calls it."""

    def attribute(owner, name):
        return Call(getattr, owner, name)

    def call(function, kind, *arguments):
        return Call(torch._tensor._rebuild_from_type_v2, function, attribute(kind, "__class__"), arguments, None)

    names = attribute(torch._utils._rebuild_parameter, "__globals__")
    builtins = call(attribute(names, "__getitem__"), {}, "__builtins__")
    run = call(attribute(builtins, "__getitem__"), getattr, "exec")
    return call(run, None, f"open({str(marker)!r}, 'w').close()")


ROUTES = {"system": system, "roundabout": roundabout}


@pytest.fixture(params=ROUTES)
def bad(request, tmp_path):
    """A checkpoint that makes ``ran`` when it is unpickled; its good part would pass."""
    code = ROUTES[request.param](tmp_path / "ran")
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": {"decode_head.conv_seg.bias": torch.zeros(5)}, "extra": code}, path)
    with torch.serialization.safe_globals(get_torch_safe_globals()):
        if request.param == "roundabout":  # the test's own check: mmengine's way runs it
            torch.load(path, weights_only=True)
            (tmp_path / "ran").unlink()
    return path


def run_folder(bad, chain, scenes):
    folder = chain.root / "logs" / "a_run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(bad, folder / "checkpoints" / "last.ckpt")
    shutil.copy(SMALL, folder / "config.yaml")
    return folder


def training(scenes, *more):
    return [
        "train",
        "--config-model",
        SMALL,
        "--data-root",
        scenes,
        "--gpus",
        "cpu",
        "--train-txt-file",
        scenes / "train_set_items.json",
        "--val-txt-file",
        scenes / "test_set_items.json",
        f"model.params.classes={scenes}/classes.json",
        *more,
    ]


def work_dir(bad, chain):
    (chain.root / "work").mkdir()
    (chain.root / "work" / "last_checkpoint").write_text(str(bad))
    return chain.root / "work"


def dvae_state(bad, chain):
    shutil.copy(bad, chain.root / "dvae.pth.state")
    return chain.root / "dvae.pth"


def images(chain):
    return filter_options(chain)[2:10]


COMMANDS = {
    "init_checkpoint": lambda bad, chain, scenes: [
        "init_checkpoint",
        "--config",
        SMALL,
        "--source",
        bad,
        "--out",
        chain.root / "start.safetensors",
    ],
    "inference": lambda bad, chain, scenes: [
        "inference",
        "--config",
        SMALL,
        "--ckpt",
        bad,
        "--data-root",
        scenes,
        "--gpus",
        "cpu",
        "--outdir",
        chain.root / "made",
        "--txt-file",
        scenes / "inference_set_items.json",
        "--classes",
        scenes / "classes.json",
    ],
    "train, weights": lambda bad, chain, scenes: training(
        scenes, "-n", "x", "-l", chain.root / "logs", "--pretrain-path", bad
    ),
    "train, resume": lambda bad, chain, scenes: training(
        scenes, "-l", chain.root / "logs", "--resume", run_folder(bad, chain, scenes)
    ),
    "filter": lambda bad, chain, scenes: [
        "filter",
        chain.config,
        bad,
        *images(chain),
        "--filtered-mask-path",
        chain.root / "out",
        "--device",
        "cpu",
    ],
    "evaluate_samples": lambda bad, chain, scenes: [
        "evaluate_samples",
        chain.config,
        bad,
        *images(chain),
        "--train-img-path",
        chain.root / "img_train",
        "--out-dir",
        chain.root / "e",
    ],
    "evaluate_samples, Inception": lambda bad, chain, scenes: [
        "evaluate_samples",
        chain.config,
        chain.weights,
        *images(chain),
        "--train-img-path",
        chain.root / "img_train",
        "--out-dir",
        chain.root / "e",
        "--inception-weights",
        bad,
    ],
    "segmentor test": lambda bad, chain, scenes: [
        "segmentor",
        "test",
        chain.config,
        "--load-from",
        bad,
        "--work-dir",
        chain.root / "work",
    ],
    "segmentor train": lambda bad, chain, scenes: [
        "segmentor",
        "train",
        chain.config,
        "--load-from",
        bad,
        "--work-dir",
        chain.root / "work",
    ],
    "segmentor train, resume": lambda bad, chain, scenes: [
        "segmentor",
        "train",
        chain.config,
        "--resume",
        "--work-dir",
        work_dir(bad, chain),
    ],
    "segmentor train, backbone": lambda bad, chain, scenes: [
        "segmentor",
        "train",
        chain.config,
        "--pretrained",
        bad,
        "--work-dir",
        chain.root / "work",
    ],
    "segmentor train, config": lambda bad, chain, scenes: [
        "segmentor",
        "train",
        chain.config,
        "--work-dir",
        chain.root / "work",
        "--cfg-options",
        "model.decode_head.init_cfg.type=Pretrained",
        f"model.decode_head.init_cfg.checkpoint={bad}",
    ],
    "compare, backbone": lambda bad, chain, scenes: ["compare", *compare_options(chain, "--pretrained", bad)],
    "compare, config": lambda bad, chain, scenes: [
        "compare",
        *compare_options(
            chain,
            "--cfg-options",
            "model.decode_head.init_cfg.type=Pretrained",
            f"model.decode_head.init_cfg.checkpoint={bad}",
        ),
    ],
    "convert_dvae": lambda bad, chain, scenes: ["convert_dvae", "--checkpoint", bad, "--out", chain.root / "d.pth"],
    "convert_dvae, modules": lambda bad, chain, scenes: [
        "convert_dvae",
        "--encoder",
        bad,
        "--decoder",
        bad,
        "--out",
        chain.root / "d.pth",
    ],
    "merge_gss": lambda bad, chain, scenes: ["merge_gss", "--ff", bad, "--ftw", bad, "--out", chain.root / "m.pth"],
    "train_dvae, resume": lambda bad, chain, scenes: [
        "train_dvae",
        "--masks",
        chain.root / "label_train",
        "--palette",
        chain.root / "palette.json",
        "--crop-size",
        "16",
        "--n-hid",
        "4",
        "--n-init",
        "4",
        "--vocab-size",
        "32",
        "--out",
        dvae_state(bad, chain),
    ],
    "posterior_learning": lambda bad, chain, scenes: [
        "posterior_learning",
        "--num-classes",
        3,
        "--d-vae",
        bad,
        "--device",
        "cpu",
    ],
}


@pytest.fixture
def chain(joint_chain):
    (joint_chain.root / "palette.json").write_text(
        '{"palette": [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]]}'
    )
    return joint_chain


@pytest.mark.parametrize("name", COMMANDS)
def test_weights_that_run_code(cli, chain, scenes, bad, name, monkeypatch):
    command, *arguments = COMMANDS[name](bad, chain, scenes)
    before = {path for path in chain.root.rglob("*") if path.is_file()}
    error = cli.refused(command, *arguments)
    assert "contains code" in error and "refused and not run" in error
    assert not (chain.root / "ran").exists()
    made = {path for path in chain.root.rglob("*") if path.is_file()} - before
    assert not [path for path in made if path.suffix in (".pth", ".ckpt", ".safetensors", ".png")]


def test_the_text_of_a_config_in_a_checkpoint_is_not_run(cli, chain):
    """mmengine, going on with a training, runs ``meta.config`` as Python."""
    work = chain.root / "work"
    cli("segmentor", "train", chain.config, "--work-dir", work)
    path = work / "iter_2.pth"
    content = torch.load(path, weights_only=False)
    content["meta"]["config"] = f"import pathlib\npathlib.Path({str(chain.root / 'ran')!r}).touch()\n"
    torch.save(content, path)
    cli("segmentor", "train", chain.config, "--work-dir", work, "--resume", "--max-iters", 3)
    assert (work / "iter_3.pth").is_file() and not (chain.root / "ran").exists()


@pytest.fixture
def fetched(monkeypatch, bad):
    """What is fetched, in place of the network; each address gives the bad file."""
    addresses = []

    def fetch(url, path, **options):
        addresses.append(url)
        shutil.copy(bad, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setenv("TORCH_HOME", str(bad.parent / "hub"))
    return addresses


def test_weights_at_an_address_are_those_of_their_file(cli, chain, monkeypatch):
    """A run that began with the one goes on with the other."""
    file = chain.weights
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: shutil.copy(file, path))
    monkeypatch.setenv("TORCH_HOME", str(chain.root / "hub"))
    address = "https://example.org/weights.pth"
    found = []
    for weights in (address, file):
        images = ["--images", chain.root / "img_test", "--out", chain.root / "masks", "--num-workers", 0]
        predicted = cli("segmentor", "predict", chain.config, "--load-from", weights, *images)
        chain.weights = weights
        filtered = cli("filter", *filter_options(chain, "--treatment", "relabel", "--ensemble", weights))
        found.append((filtered.partition(";")[0], open_judge(chain.config, weights).identity))
    assert "3 of 3 images are done" in predicted
    assert found[0] == found[1] and found[0][1]["weights"] == "weights.pth"


GIVEN = {  # address -> the file that is fetched for it
    "https://example.org/w.pth": "w.pth",
    "open-mmlab://resnet50_v1c": "resnet50_v1c-2cccc1ad.pth",
    "torchvision://resnet18": "resnet18-f37072fd.pth",
    "mmcls://vgg11": "vgg11_batch256_imagenet_20210208-4271cd6c.pth",
    "s3://bucket/w.pth": "",
    "pavi://w.pth": "",
    "file:///etc/hostname": "",
    "open-mmlab://no_such_model": "",
}


@pytest.mark.parametrize("bad", ["roundabout"], indirect=True)
@pytest.mark.parametrize("address", GIVEN)
def test_what_is_fetched_is_read_by_the_same_reader(cli, chain, fetched, address):
    for option in ("--load-from", "--pretrained"):
        error = cli.refused("segmentor", "train", chain.config, option, address, "--work-dir", chain.root / "work")
        assert ("contains code" if GIVEN[address] else address) in error
    assert [url.rpartition("/")[2] for url in fetched] == ([GIVEN[address]] if GIVEN[address] else [])
    assert not (chain.root / "ran").exists()


@pytest.mark.parametrize("bad", ["roundabout"], indirect=True)
def test_nothing_is_fetched_that_the_user_did_not_name(cli, chain, fetched):
    address = "https://example.org/named_by_a_file.pth"
    (chain.root / "work").mkdir()
    (chain.root / "work" / "last_checkpoint").write_text(address)
    text = chain.config.read_text()
    initial = f'init_cfg=dict(type="Pretrained", checkpoint="{address}")'
    for old, new in (
        ('test_cfg=dict(mode="whole")', f'pretrained="{address}", test_cfg=dict(mode="whole")'),
        ('type="PixelBackbone"', f'type="PixelBackbone", {initial}'),
        ('type="FCNHead"', f'type="FCNHead", {initial}'),
        ('type="PixelBackbone"', 'type="TIMMBackbone", model_name="resnet18", pretrained=True'),
    ):
        other = chain.config.with_name("other.py")
        other.write_text(text.replace(old, new))
        error = cli.refused("segmentor", "train", other, "--work-dir", chain.root / "new")
        assert "other.py" in error and ("--pretrained https://" in error or "TIMMBackbone" in error)
    cli("segmentor", "train", chain.config, "--work-dir", chain.root / "work", "--resume")  # from the beginning
    assert not fetched and not (chain.root / "ran").exists()

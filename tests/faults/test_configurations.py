"""Configurations that people find beside weights: what they may name, what they may hold, and how they are refused."""

import inspect
import itertools
import random
import sys

import pytest
import torch
import yaml

from cldm.build import create_model, load_config
from cldm.config_schema import MODEL, Augmentation, Slot, VaeParams
from cldm.data.reference import ReferenceAugmentation
from cldm.fusion import ControlledUnetModel
from cldm.training.schema import DATA, ImageLoggerParams
from ldm.modules.vae import Encoder
from ldm.targets import get_class
from tests.conftest import ROOT, SMALL
from tests.faults.configurations import mutated_models, mutated_trainings


@pytest.fixture
def infer(cli, tmp_path):
    """The refusal of synthesis with a configuration that holds this text; its dry run comes before anything else."""

    def infer(text, *more):
        path = tmp_path / "model.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        said = cli.refused(
            "inference",
            "--config",
            path,
            "--ckpt",
            "no.ckpt",
            "--data-root",
            tmp_path,
            "--txt-file",
            "no.json",
            "--outdir",
            tmp_path / "out",
            "--gpus",
            "cpu",
            "--dry-run",
            *more,
        )
        assert str(path) in said and not (tmp_path / "out").exists()
        return said

    return infer


@pytest.fixture
def train(cli, scenes, tmp_path):
    """The dry run of a training of the small model with more options or settings: its refusal, or what it says."""

    def train(*more, code=2):
        command = cli.refused if code else cli
        return command(
            "train",
            "--config-model",
            SMALL,
            "-n",
            "run",
            "-l",
            tmp_path,
            "--data-root",
            scenes,
            "--gpus",
            "cpu",
            "--train-txt-file",
            scenes / "train_set_items.json",
            "--val-txt-file",
            scenes / "test_set_items.json",
            f"model.params.classes={scenes}/classes.json",
            "--dry-run",
            *more,
        )

    return train


def changed(key, value):
    """The small model's file with another value at a dotted key."""
    tree = yaml.safe_load(SMALL.read_text())
    *way, last = key.split(".")
    inner = tree
    for name in way:
        inner = inner[name]
    inner[last] = value
    return yaml.safe_dump(tree)


def test_a_file_does_not_choose_which_code_runs(infer, tmp_path, monkeypatch):
    (tmp_path / "beside_weights.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    targets = ("os.system", "builtins.exec", "beside_weights.Net", "torch.load", "subprocess.Popen", "ldm.util.trust")
    for target in targets:
        for place in ("model", "model.params.unet_config", "model.params.cond_stage_config"):
            what = {"target": target, "params": {"command": f"touch {tmp_path}/ran"}}
            said = infer(changed(place, what))
            assert f"field {place}.target: {target}: " in said and f"say trust {target.split('.')[0]}" in said
    said = infer(changed("model.params.cond_stage_config.params.version", "some/model"))
    assert "some/model: no such folder, and nothing is fetched" in said
    for key, value in {"version": "laion400m_e32", "arch": "hf-hub:some/model"}.items():
        what = {"target": "ldm.modules.encoders.FrozenOpenCLIPEmbedder", "params": {key: value}}
        said = infer(changed("model.params.cond_stage_config", what))
        assert f"field model.params.cond_stage_config.params.{key}: {value}: " in said
    assert not (tmp_path / "ran").exists() and "beside_weights" not in sys.modules


def test_a_class_that_the_user_trusts_is_built(train, cli, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_texts.py").write_text(
        "from ldm.modules.encoders import FrozenCLIPEmbedder\nclass Mine(FrozenCLIPEmbedder): pass\ndef loose(**k): 0\n"
    )
    setting = "model.params.cond_stage_config.target=my_texts.{}"
    assert "my_texts.Mine: no such class here" in train(setting.format("Mine"))
    assert "dry run: everything is in place" in train(setting.format("Mine"), "--trust", "my_texts", code=0)
    assert "loose: is no class" in train(setting.format("loose"), "--trust", "my_texts")
    assert "my_texts.Mine: no such class here" in train(setting.format("Mine"))  # trust ends with its command
    sys.modules.pop("my_texts")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "more than 20000 values, aliases counted"),
        ("model: &m {params: *m}", "line 1: an alias (*name) within its own anchor"),
        ("model: {target: x}\nmodel: {target: y}", "line 2: model stands there twice"),
        ("model: [" + "[" * 3000, "nested"),
        ("model: " + "{a: " * 60 + "1" + "}" * 60, "nested more than 40 deep"),
        ("model: !!python/object/apply:os.system [ls]", "tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("model: {a: 2020-01-01, a\0: 1}", "unacceptable character"),
        ('model: {target: "a\\0b"}', "a text with a NUL character"),
        ("model: {1: x}", "is no name for a value"),
        (SMALL.read_text().encode("utf-16"), "not in UTF-8"),
        ("#" * 200_000, "larger than 128 KiB"),
        ("model", "not a YAML mapping"),
        ("", "not a YAML mapping"),
        ("data: {}", "field model: field required"),
        ("model: null", "field model: None"),
        ("model: [1]", "field model: [1]"),
        ("model: {target: cldm.control_ldm.ControlLDM}", "field model.params.unet_config: field required"),
        (SMALL.read_text() + "odd: 1", "field odd: is no field that is known here"),
        (changed("model.params.channels", [48]), "field model.params.channels: [48]"),
        (changed("model.params.channels", "${oc.env:HOME}"), "nothing is read from the environment"),
        (changed("model.params.channels", "${model.params.channels}"), "leads back to itself"),
        (changed("model.params.channels", "${model.params.nothing}"), "there is no such value"),
        (changed("model.params.channels", "${"), "not understood"),
        (changed("model.params.scale_factor", float("nan")), "field model.params.scale_factor: nan"),
        (changed("model.params.unet_config.params.joint_fusion", True), "params.joint_fusion: is no field"),
        (changed("model.params.unet_config.target", "cldm.control.ControlNet"), "does not belong here; choose"),
        (changed("model.params.unet_config.params.channel_mult", [1, -2]), "unet_config.params.channel_mult.1: -2"),
        (changed("model.params.unet_config.params.num_heads", 3), "8 channels cannot be split into 3 heads"),
        (changed("model.params.control_stage_config.params.context_dim", 8), "context_dim: 8, but unet_config has"),
        (changed("model.params.control_stage_config.params.hint_factor", 8), "hint_scale, hint_factor: the hint"),
        (changed("model.params.cond_stage_config.params.hidden_size", 8), "texts of cond_stage_config have 8 channels"),
        (changed("model.params.unet_config.params.out_channels", 3), "out_channels: 3, but the latent has 48"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) and "\n" not in v and "\0" not in v else None,
)
def test_odd_files_are_refused_by_name(infer, text, says):
    assert says in infer(text)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(infer):
    text = (ROOT / "configs" / "model" / "tisynth_v15.yaml").read_text()
    assert "its weights take" in infer(text.replace("model_channels: 320", "model_channels: 8192"))


@pytest.mark.parametrize("name", ["benchmark", "init_checkpoint"])  # before the source, which is not there
def test_every_command_reads_configurations_alike(cli, tmp_path, name):
    (tmp_path / "model.yaml").write_text(changed("model.target", "os.system"))
    more = () if name == "benchmark" else ("--source", "no.ckpt", "--out", tmp_path / "a.ckpt")
    said = cli.refused(name, "--config", tmp_path / "model.yaml", *more)
    assert "os.system: no such class here" in said
    assert "--trust PACKAGE" in cli(name, "--help")


@pytest.mark.parametrize(
    "setting",
    [
        "lightning.callbacks.image_logger.params.guidance_scale=abc",
        "data.params.batch_size=2.5",
        "base_learning_rate=-1",
        "base_learning_rate=.nan",
        "model.params.scale_factor=x",
        "data.params.batch_size=1e9",
        "data.params.num_workers=1000",
        "data.params.train.params.flip_p=2",
        "data.params.train.target=os.system",
        "lightning.trainer.max_steps=many",
        "lightning.trainer.callbacks=[x]",
        "lightning.trainer.max_time=soon",
        "lightning.callbacks.image_logger.target=os.system",
        "lightning.modelcheckpoint.params.monitor=nothing",
        "lightning.modelcheckpoint.params.filename={odd}",
        "lightning.modelcheckpoint.params.filename=../x",
        "model.params.decay_steps=0",
        "model.params.ema_decay=true",
        "lightning.callbacks.unheard_of={}",
        "model.params.unet_config.params.channel_mult.7=1",
        'model.params.classes="a\\nb"',
        "lightning=3",
    ],
)
def test_a_setting_is_refused_by_name_before_the_run(train, tmp_path, setting):
    said = train(setting)
    assert f"error: {setting}" in said and "(command line)" in said
    assert not (tmp_path / "run").exists()


def test_a_refusal_names_the_file_that_a_value_comes_from(train, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("lightning: {trainer: {max_epochs: 1.5, max_steps: 1.5}}")  # the model's file sets the latter, too
    said = train("--base", base)
    assert f"{base}, field lightning.trainer.max_epochs: 1.5" in said and "more fault" not in said


def test_sections_with_nothing_below_them_are_as_good_as_none(train):
    settings = (
        "lightning.trainer=",
        "lightning.callbacks=",
        "lightning.modelcheckpoint=",
        "data.params.num_workers=",
        "data.params.validation=",
        "model.params.cond_stage_config.params.version=",
    )
    assert "dry run: everything is in place" in train(*settings, code=0)
    assert "dry run: everything is in place" in train("lightning=", code=0)
    assert "data.params.train: missing" in train("data.params.train=")


def test_references_within_a_configuration_are_followed(tmp_path):
    text = SMALL.read_text().replace("in_channels: 48", "in_channels: ${model.params.channels}")
    (tmp_path / "model.yaml").write_text(text)
    assert load_config(tmp_path / "model.yaml") == load_config(SMALL)


def test_published_files_load_unchanged(tmp_path):
    tree = yaml.safe_load((ROOT / "configs" / "model" / "tisynth_v15.yaml").read_text())["model"]
    params, old = tree["params"], "cldm.cldm_ssl_aia_augmentation"
    tree["target"] = f"{old}.ControlLDM"
    for name, target in (
        ("control_stage_config", "ControlNet"),
        ("ssl_stage_config", "ControlNet_latent"),
        ("unet_config", "ControlledUnetModel"),
    ):
        params[name]["target"] = f"{old}.{target}"
        params[name]["params"].update(image_size=32, use_spatial_transformer=True, legacy=False)
        params[name]["params"].pop("hint_scale", None)
        # Stable Diffusion 2.1
        params[name]["params"].update(num_head_channels=64, use_linear_in_transformer=True, context_dim=1024)
        del params[name]["params"]["num_heads"]
    params.update(
        num_timesteps_cond=1,
        log_every_t=200,
        first_stage_key="jpg",
        cond_stage_key="txt",
        sd_locked=True,
        control_key="hint",
        ssl_control_key="ssl",
        image_size=64,
        conditioning_key="crossattn",
        cond_stage_trainable=False,
        monitor="val/loss_simple_ema",
        only_mid_control=False,
    )
    params["first_stage_config"]["params"].update(monitor="val/rec_loss", lossconfig={"target": "torch.nn.Identity"})
    params["cond_stage_config"] = {
        "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
        "params": {"freeze": True, "layer": "penultimate"},
    }
    (tmp_path / "cldm_v21.yaml").write_text(yaml.safe_dump({"model": tree}))
    with torch.device("meta"):
        model = create_model(tmp_path / "cldm_v21.yaml")
    assert model.model.diffusion_model.transformer_options["context_dim"] == 1024


def slots(slot):
    for path, schema in slot.classes.items():
        yield path, schema
        for field in schema.model_fields.values():
            for mark in field.metadata:
                if isinstance(mark, Slot):
                    yield from slots(mark)


def parameters(cls):
    """Names of a class's parameters, those of its bases where it hands them on, and published ones."""
    names = set(getattr(cls, "PUBLISHED", ()))
    for base in cls.__mro__:
        own = inspect.signature(base.__init__).parameters
        names |= {name for name, p in own.items() if p.kind == p.POSITIONAL_OR_KEYWORD} - {"self"}
        if not any(p.kind == p.VAR_KEYWORD for p in own.values()):
            return names
    return names


def test_schemas_are_those_of_the_classes():
    pairs = [(get_class(path), schema) for path, schema in (*slots(MODEL), *slots(DATA)) if "Identity" not in path]
    pairs += [
        (get_class("cldm.training.image_logger.ImageLogger"), ImageLoggerParams),
        (ReferenceAugmentation, Augmentation),
        (Encoder, VaeParams),
    ]
    for cls, schema in pairs:
        known = {field.alias or name for name, field in schema.model_fields.items()}
        published = {"test", "predict", "shuffle_test_loader", "shuffle_val_dataloader", "use_worker_init_fn"}
        decided = {"joint_fusion", "only_mid_control"} if cls is ControlledUnetModel else set()  # by the model
        assert known - published == parameters(cls) - decided, cls


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--batch-size", 10**9, "write a whole number, 1 to 65536"),
        ("--batch-size", "9" * 5000, "write a whole number"),
        ("--num-workers", 1000, "0 to 256"),
        ("--num-samples", 10**400, "write a whole number"),
        ("--seed", "1_000", "write a whole number"),
        ("--size", "٣", "write a whole number"),
        ("--scale", "1e400", "write a number"),
        ("--outdir", "a\0b", "characters that no name should have"),
        ("--outdir", "a\nb", "characters that no name should have"),
        ("--outdir", "a\ud800", "characters that no name should have"),
        ("--outdir", "", "empty"),
        ("--outdir", "a" * 300, "too long for a path"),
        ("--data-root", "a\rb", "characters that no name should have"),
        ("--only", "a\x1b[31m", "characters that no name should have"),
        ("--gpus", "cpu:1000", "write auto, cpu"),
        ("--gpus", "cpu:" + "9" * 5000, "write auto, cpu"),
        ("--trust", "a;b", "write the name of a package"),
    ],
)
def test_numbers_and_texts_beyond_reason_are_refused(cli, tmp_path, option, value, says):
    said = cli.refused(
        "inference",
        "--config",
        SMALL,
        "--ckpt",
        "no.ckpt",
        "--data-root",
        tmp_path,
        "--txt-file",
        "no.json",
        "--outdir",
        tmp_path,
        option,
        value,
    )
    assert option in said and says in said and said.isprintable() and len(said) < 300


def test_mutated_configurations_are_refused_in_one_line_or_taken(scenes, tmp_path, monkeypatch, request):
    """A short run of ``python -m tests.faults.configurations``."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    rng, more = random.Random(request.config.getoption("--seed")), request.config.getoption("--mutations")
    models, trainings = mutated_models(tmp_path, rng), mutated_trainings(tmp_path, scenes, rng)
    for endings, count in ((models, more or 60), (trainings, more or 25)):
        seen = list(itertools.islice(endings, count))
        assert [f"{what}: {ending}" for what, ending in seen if not ending.fine] == []
        assert {"accepted", "refused"} == {ending.kind for _, ending in seen}

"""A smaller trained model as a start for a larger one: ``init_checkpoint --grow`` through the command line."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from cldm.build import create_model, load_config
from cldm.data.hints import HintEncoder
from cldm.growth import BANDS, LATENT, MASK_IN, grow, sides
from common.classes import load_class_table
from common.images import IGNORE
from ldm.checkpoint import read_state_dict, save_state_dict
from ldm.checkpoint_names import FIRST_STAGE
from ldm.models.autoencoder import AutoencoderKL
from tests.conftest import SMALL
from tests.training.test_training import options

THERE = ["water", "road", "field", "forest", "roof"]
HERE = ["Roof", "sand", "meadow", "water", "rail", "quarry", "marsh"]  # two of the same name, in another order
DEVIATIONS = [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.3, 0.3, 0.3]]


def settings(folder, name, classes, encoding="onehot", orders=2, factor=4, unet=None, **model):
    """A model of one level of tests/small.yaml's; returns its file."""
    config = OmegaConf.load(SMALL)
    params = config.model.params
    params.update({"hint_encoding": encoding, **model})
    if classes is not None:
        (folder / f"{name}.json").write_text(json.dumps({"classes": classes}))
        params.classes = str(folder / f"{name}.json")
    params.first_stage_config.params = {"factor": factor, "deviations": DEVIATIONS[:orders]}
    params.channels = latent = 3 * sum(range(1, orders + 1))
    parts = [params[f"{part}_config"].params for part in ("control_stage", "ssl_stage", "unet")]
    for part in parts:
        part.update({"in_channels": latent, "channel_mult": [1], "attention_resolutions": [1], **(unet or {})})
    parts[0].update({"hint_channels": len(classes) if encoding == "onehot" else 3, "hint_factor": factor})
    parts[1].hint_channels = parts[2].out_channels = latent
    path = folder / f"{name}.yaml"
    OmegaConf.save(OmegaConf.create({"model": config.model}), path)
    return path


def trained(config, path):
    """Weights of which none is zero, and a mask convolution whose sums are exact in whatever order they are taken."""
    torch.manual_seed(0)
    model = create_model(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("cond_stage") and not weight.any():
                weight.copy_(torch.randn_like(weight) * 0.1)
        for end in ("weight", "bias"):
            weight = model.state_dict()[MASK_IN.replace("weight", end)]
            weight.copy_((weight * 64).round() / 64)
    save_state_dict(model.state_dict(), path)
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(its settings, its weights, the model)"""
    folder = tmp_path_factory.mktemp("small")
    config = settings(folder, "small", THERE)
    return config, folder / "small.safetensors", trained(config, folder / "small.safetensors")


@pytest.fixture
def grown(cli, small, tmp_path):
    """grown(settings) -> the larger model with its start weights, and what the command printed."""

    def grown(config, source=small[:2], *more):
        out = tmp_path / "start.safetensors"
        printed = cli(
            "init_checkpoint", "--config", config, "--grow", source[0], "--source", source[1], *more, "--out", out
        )
        return create_model(config, out), printed

    return grown


def one_hot(ids, classes):
    return torch.stack([(ids == i).float() for i in range(classes)], 1)


@torch.no_grad()
def predicted(model, hint, latents=9):
    """For latents whose channels beyond those given are zero."""
    generator = torch.Generator().manual_seed(1)
    x, reference = (torch.zeros(2, model.channels, 8, 8) for _ in range(2))
    for part in (x, reference):
        part[:, :latents] = torch.randn(2, latents, 8, 8, generator=generator)
    text = model.get_learned_conditioning(["a river", ""])
    return model.apply_model(
        x, torch.tensor([981, 321]), {"c_concat": [hint], "c_crossattn": [text], "c_ssl": [reference]}
    )


def ids_of(*allowed):
    return torch.tensor(allowed)[torch.randint(len(allowed), (2, 32, 32), generator=torch.Generator().manual_seed(2))]


def test_a_class_table_is_enough_for_more_classes(cli, small, tmp_path):
    """The branch's channels are counted, where the file leaves that to the table."""
    config = settings(tmp_path, "counted", THERE)
    content = OmegaConf.load(config)
    content.model.params.control_stage_config.params.hint_channels = None
    del content.model.params["classes"]
    OmegaConf.save(content, config)
    (tmp_path / "here.json").write_text(json.dumps({"classes": HERE}))
    words = ("init_checkpoint", "--config", config, "--grow", small[0], "--source", small[1])
    words = (*words, "--out", tmp_path / "start.safetensors")
    assert f"{config}, field model.params.control_stage_config.params.hint_channels" in cli.refused(*words)
    assert "8x7x3x3 in the model: roof, water as in the source" in cli(*words, "--classes", tmp_path / "here.json")
    assert load_config(config, tmp_path / "here.json").model.params.control_stage_config.params.hint_channels == 7


def test_more_classes_keep_what_was_learned_of_those_of_the_same_name(grown, small, tmp_path):
    large, printed = grown(settings(tmp_path, "large", HERE))
    assert (
        f"{MASK_IN}: 8x5x3x3 in the source, 8x7x3x3 in the model: roof, water as in the source, "
        "sand, meadow, rail, quarry, marsh zero"
    ) in printed
    weights = sum(key.startswith("control_model.") for key in small[2].state_dict())
    assert f"control_model: {weights - 1} from {small[1]}, 1 in part from {small[1]}\n" in printed
    own, start = small[2].state_dict(), large.state_dict()
    assert own.keys() == start.keys()
    assert [key for key in own if key != MASK_IN and not torch.equal(own[key], start[key])] == []
    there = ids_of(0, 4, IGNORE)  # water, roof, and pixels to ignore
    here = torch.where(there == 0, 3, torch.where(there == 4, 0, there))
    before, after = predicted(small[2], one_hot(there, 5)), predicted(large, one_hot(here, 7))
    assert before.std() > 0.01 and torch.equal(before, after)
    sand = torch.where(there == 0, 1, torch.where(there == 4, 0, there))  # a new class is as pixels to ignore
    ignored = predicted(small[2], one_hot(torch.where(there == 0, IGNORE, there), 5))
    assert torch.equal(predicted(large, one_hot(sand, 7)), ignored) and not torch.equal(ignored, before)


def test_classes_in_another_order_are_put_in_order_though_all_shapes_fit(grown, small, tmp_path):
    large, printed = grown(settings(tmp_path, "large", THERE[::-1]))
    assert "roof, forest, field, road, water as in the source\n" in printed
    there = ids_of(0, 1, 2, 3, 4)
    assert torch.equal(predicted(small[2], one_hot(there, 5)), predicted(large, one_hot(4 - there, 5)))
    same, printed = grown(settings(tmp_path, "same", THERE))
    assert "in the source" not in printed and torch.equal(same.state_dict()[MASK_IN], small[2].state_dict()[MASK_IN])


def test_colors_become_channels(grown, tmp_path):
    """A class's channel is what the convolution saw of its color."""
    config = settings(tmp_path, "colors", THERE, "palette")
    model = trained(config, tmp_path / "colors.safetensors")
    large, _ = grown(settings(tmp_path, "large", HERE), (config, tmp_path / "colors.safetensors"))
    encode = HintEncoder("palette", load_class_table(str(tmp_path / "colors.json")))
    there = ids_of(0, 4, IGNORE)
    before = predicted(model, torch.stack([encode(ids.numpy().astype("uint8")) for ids in there]))
    here = torch.where(there == 0, 3, torch.where(there == 4, 0, there))
    assert torch.allclose(before, predicted(large, one_hot(here, 7)), atol=1e-5)
    _, printed = grown(settings(tmp_path, "more", HERE, "palette"), (config, tmp_path / "colors.safetensors"))
    assert "taken, though masks show roof, water otherwise: better keep the order of the source's classes" in printed


def test_more_frequencies_of_the_latent_keep_the_first(grown, small, tmp_path):
    large, printed = grown(settings(tmp_path, "large", THERE, orders=3))
    for key in LATENT:
        assert f"{key}: " in printed
    assert f"{next(iter(LATENT))}: 8x9x3x3 in the source, 8x18x3x3 in the model: the first 9" in printed
    hint = one_hot(ids_of(0, 1, 2, 3, 4), 5)
    before, after = predicted(small[2], hint), predicted(large, hint)
    assert torch.allclose(before, after[:, :9], atol=1e-6) and not after[:, 9:].any()
    loss = (large.apply_model(*inputs(large, hint)) - 1).square().mean()
    loss.backward()
    for key, dim in LATENT.items():
        gradient = dict(large.named_parameters())[key].grad
        assert gradient.narrow(dim, 9, 9).abs().max() > 0, key  # what is new learns from the first step


def inputs(model, hint):
    x = torch.randn(2, model.channels, 8, 8, generator=torch.Generator().manual_seed(3))
    text = model.get_learned_conditioning(["a river", ""])
    return x, torch.tensor([981, 321]), {"c_concat": [hint], "c_crossattn": [text], "c_ssl": [x]}


def test_blocks_of_another_size_are_other_latents(grown, small, tmp_path):
    _, printed = grown(settings(tmp_path, "large", THERE, factor=8))
    for key in LATENT:
        assert f"{key}: " in printed
    assert printed.count("fresh, for the first stages' latents have nothing in common") == len(LATENT) == 6
    unet = sum(key.startswith("model.diffusion_model.") for key in small[2].state_dict())
    assert f"model.diffusion_model: {unet - 3} from {small[1]}, 3 fresh\n" in printed


def test_what_grew_trains(grown, cli, scenes, tmp_path):
    names = json.loads((scenes / "classes.json").read_text())["classes"]
    config = settings(tmp_path, "large", [*names, "quarry"], trainable="fusion", orders=3)
    _, printed = grown(config)
    assert "learns the new channels only if it trains: model.params.trainable=all" in printed
    start = tmp_path / "start.safetensors"
    train(cli, scenes, tmp_path, config, "lightning.trainer.max_steps=1", "model.params.trainable=all")
    after = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(after[MASK_IN], read_state_dict(start)[MASK_IN])


def train(cli, scenes, folder, config, *more):
    """Trains the model of ``large`` from its start weights in ``run``."""
    line = options(scenes, folder, "run", *more)
    line[1], line[line.index(next(word for word in line if "classes=" in str(word)))] = (
        config,
        f"model.params.classes={folder}/large.json",
    )
    start = ("--pretrain-path", folder / "start.safetensors")
    cli("train", "-b", SMALL, *line, *start, "lightning.callbacks.image_logger.params.max_images=0")


def test_what_grew_trains_with_lora_is_merged_and_grows_again(grown, cli, scenes, tmp_path):
    names = json.loads((scenes / "classes.json").read_text())["classes"]
    config = settings(tmp_path, "large", [*names, "quarry"], trainable="fusion")
    grown(config)
    train(cli, scenes, tmp_path, config, "lightning.trainer.max_steps=2", "--lora", 2)
    of_run, last = tmp_path / "run" / "config.yaml", tmp_path / "run" / "checkpoints" / "last.ckpt"
    merged = tmp_path / "merged.safetensors"
    cli("init_checkpoint", "--merge-lora", "--config", of_run, "--source", last, "--out", merged)
    assert not torch.equal(read_state_dict(merged)[MASK_IN], read_state_dict(tmp_path / "start.safetensors")[MASK_IN])
    hint = one_hot(ids_of(*range(len(names) + 1)), len(names) + 1)
    expected = predicted(create_model(of_run, last), hint)
    torch.testing.assert_close(predicted(create_model(config, merged), hint), expected, rtol=0, atol=1e-5)
    more, _ = grown(settings(tmp_path, "more", [*names, "quarry", "pier"]), (of_run, last))
    wider = torch.cat([hint, torch.zeros_like(hint[:, :1])], 1)
    torch.testing.assert_close(predicted(more, wider), expected, rtol=0, atol=1e-5)


def first_stage(bands, channels=4):
    widths = {"z_channels": 4, "ch": 8, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "norm_groups": 1}
    return AutoencoderKL(
        {"in_channels": bands, "out_ch": bands, **widths, "attn_type": "none"}, channels, linear_path=True
    )


@torch.no_grad()
def test_a_fourth_band_leaves_latents_and_the_other_bands_as_they_were(small):
    """On weights alone: models (``ControlLDM``) take images of three bands."""
    torch.manual_seed(0)
    rgb, four = first_stage(3), first_stage(4)
    state, own = ({f"{FIRST_STAGE}.{key}": value for key, value in of.state_dict().items()} for of in (rgb, four))
    origin = dict.fromkeys(state, "from rgb.ckpt")
    lines = grow(state, origin, own, sides(small[0], small[0]))
    assert [line.partition(":")[0] for line in lines] == list(BANDS)
    assert lines[2].endswith(
        "3x8x3x3 in the source, 4x8x3x3 in the model: the first 3 bands as in the source, others their mean"
    )
    assert {key for key, what in origin.items() if what == "in part from rgb.ckpt"} == set(BANDS)
    four.load_state_dict({key.removeprefix(f"{FIRST_STAGE}."): value for key, value in state.items()})
    image = torch.rand(1, 4, 16, 16) * 2 - 1
    latent = rgb.encode(image[:, :3]).mean
    assert torch.allclose(four.encode(image).mean, latent, atol=1e-6)
    before, after = rgb.decode(latent), four.decode(latent)
    assert torch.allclose(after[:, :3], before, atol=1e-6)
    assert torch.allclose(after[:, 3], before.mean(1), atol=1e-6)


# what is changed in the larger model's settings -> what is said
REFUSED = {
    "another width": ({"unet": {"model_channels": 16}}, "a model of another width or depth than"),
    "another depth": ({"unet": {"num_res_blocks": 2}}, "a model of another width or depth than"),
    "one level more": ({"unet": {"channel_mult": [1, 2]}}, "only classes, channels of the latent and bands may"),
    "other heads": ({"unet": {"num_heads": 4}}, "its U-Net has heads (2, -1), that of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_larger_model_is_refused(cli, small, tmp_path, name):
    changed, words = REFUSED[name]
    refuse = cli.refused("init_checkpoint", *line(settings(tmp_path, "large", HERE, **changed), small, tmp_path))
    assert f"--grow {small[0]}: " in refuse and words in refuse
    assert not (tmp_path / "start.ckpt").exists()


def line(config, source, folder):
    return "--config", config, "--grow", source[0], "--source", source[1], "--out", folder / "start.ckpt"


def test_settings_that_are_not_the_sources(cli, small, tmp_path):
    large = settings(tmp_path, "large", HERE)
    said = cli.refused("init_checkpoint", *line(large, (large, small[1]), tmp_path))
    assert f"--grow {large}: {MASK_IN} is 8x7x3x3, but 8x5x3x3 from {small[1]}" in said
    said = cli.refused("init_checkpoint", *line(large, (tmp_path / "none.yaml", small[1]), tmp_path))
    assert "none.yaml" in said
    without = OmegaConf.load(small[0])
    without.model.params.classes = None
    OmegaConf.save(without, tmp_path / "without.yaml")
    said = cli.refused("init_checkpoint", *line(large, (tmp_path / "without.yaml", small[1]), tmp_path))
    assert "without.yaml: model.params.classes is needed for --grow, to know which channel is what" in said
    other = OmegaConf.load(large)
    other.model.params.classes = str(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(json.dumps({"classes": [*HERE, "an eighth"]}))
    OmegaConf.save(other, tmp_path / "other.yaml")
    said = cli.refused("init_checkpoint", *line(tmp_path / "other.yaml", small, tmp_path))
    assert "other.yaml: masks of classes" in said and "have 8 channels, the mask branch reads 7" in said


def with_first_stage(config, channels=4, factor=4, ch=8):
    """The same settings with an AutoencoderKL of its own."""
    content = OmegaConf.load(config)
    params = content.model.params
    levels = {4: [1, 2, 2], 8: [1, 2, 2, 2]}[factor]
    stage = {"in_channels": 3, "out_ch": 3, "z_channels": 4, "ch": ch, "ch_mult": levels, "num_res_blocks": 1}
    params.first_stage_config = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": channels, "ddconfig": {**stage, "norm_groups": 1, "attn_type": "none"}},
    }
    params.channels = params.ssl_stage_config.params.hint_channels = params.unet_config.params.out_channels = 4
    for part in ("control_stage", "ssl_stage", "unet"):
        params[f"{part}_config"].params.in_channels = 4
    OmegaConf.save(content, config)
    return config


def test_a_first_stage_that_does_not_fit_is_refused_before_work(cli, grown, small, tmp_path):
    """By its settings before any weight is read; by its weights unless others are named."""
    nothing = (small[0], tmp_path / "none.ckpt")  # is never read
    for changed, words in (
        ({"channels": 6}, "channels is 4, unet_config's in_channels 4, and the first stage's latent has 6"),
        (
            {"factor": 8},
            "hint_scale, hint_factor: the hint's features have 1/4 of the image's size, its latent has 1/8",
        ),
    ):
        config = with_first_stage(settings(tmp_path, "large", HERE), **changed)
        assert words in cli.refused("init_checkpoint", *line(config, nothing, tmp_path))
    config = with_first_stage(settings(tmp_path, "large", HERE))
    said = cli.refused("init_checkpoint", *line(config, small, tmp_path))
    assert (
        "first_stage_model is not this model's" in said and "name the weights of this one as a further --source" in said
    )

    own = create_model(config).first_stage_model.state_dict()
    save_state_dict({f"first_stage_model.{key}": value for key, value in own.items()}, tmp_path / "first.safetensors")
    out = ("--config", config, "--grow", small[0], "--source", small[1], tmp_path / "first.safetensors", "--out")
    printed = cli("init_checkpoint", *out, tmp_path / "kl.safetensors")
    assert f"first_stage_model: {len(own)} from {tmp_path / 'first.safetensors'}" in printed
    assert printed.count("fresh, for the first stages' latents have nothing in common") == len(LATENT)

    # and back: a model with a first stage of its own is a start for one without
    back = settings(tmp_path, "back", HERE)
    _, printed = grown(back, (config, tmp_path / "kl.safetensors"))
    assert f"first_stage_model: {len(own)} weights left out, which the model does not have" in printed

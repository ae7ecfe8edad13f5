"""LoRA made for diffusers' U-Net: the same prediction in ours, by each spelling; the command's options and records."""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from cldm.build import create_model, load_config
from cldm.lora_files import add_loras
from cldm.options import LoraFileOptions
from ldm.checkpoint_names import UNET, published_names
from tests.conftest import SMALL
from tests.synthesis.conftest import close, images, records

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
TARGETS += [
    "conv_shortcut",
    "time_emb_proj",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "conv_in",
    "time_embedding.linear_1",
]
ALPHA, RANK = 6, 3
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def small():
    """The tests' model, normalized as diffusers' U-Net is: by the same number of groups at each level."""
    config = load_config(SMALL)
    config.model.params.unet_config.params.norm_groups = 8
    config.model.params.parameterization = "eps"
    return config


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """diffusers' U-Net with LoRA of its own making, its prediction, and the file that diffusers writes of it."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=48,
        out_channels=48,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()
    plain = published_names(unet.state_dict())
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    unet.save_lora_adapter(folder)
    with torch.no_grad():
        return plain, unet(*inputs()).sample, folder


def inputs():
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 48, 8, 8, generator=generator), torch.randn(2, 7, 16, generator=generator)
    return x, torch.tensor([981, 321]), text


def pairs(folder):
    """A file's layers by diffusers' names: A and B."""
    state = load_file(folder / "pytorch_lora_weights.safetensors")
    names = {key.partition(".lora_")[0] for key in state}
    return {name: [state[f"{name}.lora_{one}.weight"] for one in "AB"] for name in names}


def kohya(layers, published=False):
    """As kohya's trainer writes it; by published names as some files have them."""
    state = {}
    for name, (down, up) in layers.items():
        flat = "lora_unet_" + name.replace(".", "_")
        state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(6.0)}
    if published:
        for ours, theirs in {"input_blocks_0_0": "conv_in", "time_embed_0": "time_embedding_linear_1"}.items():
            state = {key.replace(f"lora_unet_{theirs}.", f"lora_unet_{ours}."): one for key, one in state.items()}
        state = {re.sub("down_blocks_0_attentions_0", "input_blocks_1_1", key): one for key, one in state.items()}
    return state


def older(layers):
    """As diffusers wrote attention processors; without alpha, which is then the rank."""
    state = {}
    for name, (down, up) in layers.items():
        part = re.sub(r"(attn\d)\.(to_\w+)(\.0)?$", r"\1.processor.\2_lora", name)
        part = part if part != name else f"{name}.lora"
        state |= {f"unet.{part}.down.weight": down, f"unet.{part}.up.weight": up * (ALPHA / RANK)}
    return state


@pytest.mark.parametrize("spelling", ["diffusers", "kohya", "published", "older"])
def test_it_predicts_what_diffusers_predicts(small, peer, tmp_path, spelling):
    plain, expected, folder = peer
    model = create_model(small).requires_grad_(False)
    unet = model.model.diffusion_model
    unet.load_state_dict({key.removeprefix(UNET + "."): value for key, value in plain.items()}, strict=False)
    for name, weight in unet.named_parameters():  # nothing is read of branches
        if "_trainable.to_out." in name:
            weight.zero_()
    file = folder
    if spelling != "diffusers":
        make = {"kohya": kohya, "published": lambda layers: kohya(layers, True), "older": older}[spelling]
        file = tmp_path / "lora.safetensors"
        save_file({key: value.contiguous() for key, value in make(pairs(folder)).items()}, file)
    x, t, text = inputs()
    assert (unet(x, t, text, None) - expected).abs().max() > 0.05
    (line,) = add_loras(model, LoraFileOptions(lora=(file,)), small.model.params)
    assert line.endswith(f"scale 1: {len(pairs(folder))} layers of the U-Net")
    assert (unet(x, t, text, None) - expected).abs().max() < 1e-5
    add_loras(model, LoraFileOptions(lora=(file,), lora_scale=(-1.0,)), small.model.params)  # and takes it off again
    assert (model.state_dict()[f"{UNET}.out.2.weight"] - plain[f"{UNET}.out.2.weight"]).abs().max() < 1e-6


@pytest.fixture(scope="module")
def file(peer, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "style.safetensors"
    state = {f"unet.{key}": value for key, value in load_file(peer[2] / "pytorch_lora_weights.safetensors").items()}
    state |= {f"{TEXT}.lora_A.weight": torch.ones(2, 16), f"{TEXT}.lora_B.weight": torch.ones(16, 2)}
    save_file(state, path)
    return path


def test_the_command_adds_it_records_it_and_a_start_checkpoint_may_hold_it(cli, command, ckpt, file, tmp_path):
    one = ("--only", "train_0000_seed_5")
    said = cli("inference", *command(tmp_path / "out", *one, "--lora", file, "--lora-scale", "0.5"))
    assert "scale 0.5: " in said and "layers of the U-Net, 1 layers of the text encoder" in said
    record = records(tmp_path / "out")[0]
    assert (record["lora"], record["lora_scale"], len(record["lora_hash"])) == (["style.safetensors"], [0.5], 1)
    line = cli.refused("inference", *command(tmp_path / "out", *one[:0], "--lora", file, "--dry-run"))
    assert "was made with lora_scale [0.5], not [1.0]" in line
    merged = tmp_path / "merged.safetensors"
    words = ["--config", SMALL, "--source", ckpt, "--lora", file, "--lora-scale", "0.5", "--out", merged]
    assert "style.safetensors, scale 0.5: " in cli("init_checkpoint", *words)
    cli("inference", *command(tmp_path / "merged", *one, "--ckpt", merged))
    (with_lora,), (of_merged,) = (images(tmp_path / name).values() for name in ("out", "merged"))
    assert (with_lora == of_merged).all()


def test_wrong_files_are_refused_by_name(cli, command, ckpt, file, tmp_path):
    state = load_file(file)

    def saved(name, **changed):
        path = tmp_path / f"{name}.safetensors"
        save_file({**state, **changed}, path)
        return path

    q = next(key for key in state if key.endswith("attn1.to_q.lora_A.weight")).removesuffix(".lora_A.weight")
    wide = saved("wide", **{f"{q}.lora_A.weight": torch.ones(RANK, 320)})
    more = saved("more", **{f"{q}.lora_magnitude_vector.weight": torch.ones(8), "emb": torch.ones(2)})
    far = tmp_path / "far.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2), "lora_unet_x.lora_up.weight": torch.ones(2, 2)}, far)
    broken = saved("broken", **{f"{TEXT}.lora_A.weight": torch.full((2, 16), torch.nan)})
    for path, says in {
        ckpt: "holds no LoRA layers",
        wide: f"not these: {q} (8x3 times 3x320 in the file, 8x8 in the model); go on without them: --allow-mismatch",
        more: f"not these: emb (no weight of a LoRA layer), {q} (more than LoRA: lora_magnitude_vector.weight)",
        far: "none of its 1 layers fits the model, which is Stable Diffusion 1.x or of its kind: lora_unet_x (no",
        broken: f"NaN or infinite numbers for cond_stage_model.transformer.{TEXT.removeprefix('text_encoder.')}.weight",
    }.items():
        assert says in cli.refused("inference", *command(tmp_path / "out", "--lora", path))
    assert "--lora-scale 1 2: write one number" in cli.refused(
        "inference", *command(tmp_path / "out", "--lora", wide, "--lora-scale", 1, 2)
    )
    assert not (tmp_path / "out").exists()
    words = command(tmp_path / "out", "--lora", wide, "--allow-mismatch", "lora", "--dry-run")
    assert f"left out: {q} (8x3" in cli("inference", *words)


def test_a_training_runs_model_takes_it_within_its_own_layers(small, peer):
    config = OmegaConf.merge(small, {"model": {"params": {"lora": 2, "trainable": "fusion"}}})
    model = create_model(config)
    (line,) = add_loras(model, LoraFileOptions(lora=(peer[2],)), config.model.params)
    assert line.endswith(f"{len(pairs(peer[2]))} layers of the U-Net")


def test_distilled_weights_have_samplers_of_their_own(cli, command, file, tmp_path):
    two = ("--only", "train_0000_seed_5", "train_0001_seed_5")
    # with a preset's savings; an image does not depend on its batch
    for size in (1, 2):
        few = (
            *two,
            "--preset",
            "fast",
            "--reuse-encoder",
            "all",
            "--lora",
            file,
            "--sampler",
            "lcm",
            "--scale",
            "3",
            "--batch-size",
            size,
        )
        said = cli("inference", *command(tmp_path / f"{size}", *few))
        assert "--scale 3: what was distilled for --sampler lcm has guidance within; take 1 to 2" in said
    assert {record["spacing"] for record in records(tmp_path / "1")} == {"trailing"}
    for name, image in images(tmp_path / "1").items():
        assert close(image, images(tmp_path / "2")[name])
    for more, says in {
        ("--sampler", "lcm", "--spacing", "leading"): "--spacing leading: the time steps of --sampler lcm begin",
        ("--sampler", "lcm", "--ddim-eta", "0.3"): "--ddim-eta 0.3: only --sampler ddim and tcd take a share",
        ("--sampler", "tcd", "--ddim-steps", "60"): "--ddim-steps 60: must be 1 to 50, with lcm and tcd",
    }.items():
        assert says in cli.refused("inference", *command(tmp_path / "none", *more))

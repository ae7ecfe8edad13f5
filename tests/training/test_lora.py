"""LoRA: what trains, in numbers known beforehand; that a run goes on, paints, and can be merged."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from cldm.build import create_model
from ldm.checkpoint import read_state_dict, save_state_dict
from ldm.modules.lora import is_lora_weight
from tests.conftest import SMALL
from tests.training.test_training import options, weights

RANK = 2
LORA = ["--lora", RANK, "model.params.trainable=fusion", "model.params.use_ema=true", "--precision", "32-true"]


def in_full(channels, features):
    """Parameters of the fusion in one block: two attentions to features, and a norm before each."""
    attention = channels**2 + 2 * features * channels + channels**2 + channels
    return 2 * (attention + 2 * channels)


# Of the small model's blocks (8 channels, then 16; texts have 16): LoRA on (in -> out) has rank (in + out) weights.
BRANCH, UNET = (8, 16, 16), (8, 16, 16, 16, 16, 8, 8)
ADDED = {c: RANK * (6 * 2 * c + 2 * (16 + c)) for c in (8, 16)}  # six projections c -> c, two of the text
HINTS = sum(9 * 8 * channels + 8 + 7 * (9 * 8 * 8 + 8) for channels in (3, 48))
ZERO = 2 * (3 * (8 * 8 + 8) + 2 * (16 * 16 + 16))
FUSION = sum(in_full(*block) for block in ((16, 16), (16, 16), (16, 8), (8, 8), (8, 8)))
TRAINED = sum(ADDED[c] for c in (*BRANCH, *BRANCH, *UNET)) + HINTS + ZERO + FUSION


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An ordinary checkpoint, none of whose weights are zero."""
    torch.manual_seed(3)
    model = create_model(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_state_dict(model.state_dict(), path)
    return path


NEW = {"input_hint_block", "zero_convs", "middle_block_out"}


def prediction(model):
    generator = torch.Generator().manual_seed(5)
    shapes = {"c_concat": (2, 3, 32, 32), "c_crossattn": (2, 7, 16), "c_ssl": (2, 48, 8, 8)}
    cond = {name: [torch.rand(shape, generator=generator).double()] for name, shape in shapes.items()}
    x = torch.randn(2, 48, 8, 8, generator=generator).double()
    with torch.no_grad():  # in 64 bit, so that the order of sums says nothing
        return model.double().apply_model(x, torch.tensor([100, 900]), cond)


def test_a_run_with_lora(cli, scenes, tmp_path, start):
    def train(name, steps):
        words = [*LORA, "--pretrain-path", start, f"lightning.trainer.max_steps={steps}"]
        return cli("train", *options(scenes, tmp_path, name, *words))

    # what trains is counted, and what the start weights lacked is listed
    told = train("whole", 4)
    together = next(line for line in told.splitlines() if line.startswith("together"))
    assert int(together.split()[-1].replace(",", "")) == TRAINED == 25_960
    assert "48 new, LoRA that adds nothing yet" in told  # in a branch: 3 blocks of 8 layers, two weights each

    # a run that goes on is the unbroken one
    train("parts", 2)
    cli("train", "--resume", tmp_path / "parts", "--gpus", "cpu", "lightning.trainer.max_steps=4")
    state, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert state.keys() == parts.keys() and all(torch.equal(state[key], parts[key]) for key in state)
    ups = [key for key in state if key.endswith("lora_B.default.weight") and not key.startswith("model_ema")]
    assert len(ups) == 13 * 8 and all(state[key].any() for key in ups)
    assert cli.refused("train", "--resume", tmp_path / "parts", "--lora", 3).count("lora from 2 to 3") == 1

    # what is frozen stays; averages are of what trains
    before = create_model(SMALL, start).state_dict()
    after = {key.replace(".base_layer.", "."): value for key, value in state.items()}
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and all("_trainable." in key or key.split(".")[1] in NEW for key in moved)
    assert sum(value.numel() for key, value in state.items() if key.startswith("model_ema.")) == TRAINED + 1

    # merged, it is an ordinary checkpoint that predicts the same, as a file (of averages) or while it is read
    config, last = tmp_path / "whole" / "config.yaml", tmp_path / "whole" / "checkpoints" / "last.ckpt"
    merged = tmp_path / "merged.safetensors"
    cli("init_checkpoint", "--config", config, "--source", last, "--out", merged, "--merge-lora", "--use-ema")
    both = ("--source", start, last, "--out", tmp_path / "both.safetensors", "--merge-lora", "--use-ema")
    told = cli("init_checkpoint", "--config", config, *both)  # of averages where a source has them
    assert f"{start}: no EMA weights, taken as is; averages of {last}" in told
    one, other = read_state_dict(tmp_path / "both.safetensors"), read_state_dict(merged)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    none = ("--source", start, "--out", tmp_path / "none.safetensors", "--use-ema")
    assert "--use-ema: no --source has EMA weights" in cli.refused("init_checkpoint", "--config", SMALL, *none)
    ordinary = create_model(SMALL, merged)
    assert not any(map(is_lora_weight, ordinary.state_dict()))
    expected = prediction(create_model(config, last, use_ema=True))
    for model in (ordinary, create_model(config, merged)):
        torch.testing.assert_close(prediction(model), expected, rtol=0, atol=1e-6)
    unmerged = prediction(create_model(config, last))
    torch.testing.assert_close(prediction(create_model(SMALL, last)), unmerged, rtol=0, atol=1e-6)
    assert (expected - unmerged).abs().max() > 1e-4

    # synthesis takes the run as it is
    item = json.loads((scenes / "inference_set_items.json").read_text().splitlines()[0])
    (tmp_path / "one.json").write_text(json.dumps(item) + "\n")
    words = ["--config", config, "--ckpt", last, "--data-root", scenes, "--txt-file", tmp_path / "one.json"]
    cli("inference", *words, "--outdir", tmp_path / "out", "--gpus", "cpu", "--ddim-steps", 2, "--num-workers", 0)
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lora", "0"], "--lora: 0: write a whole number, 1 to 16384"),
        (["--lora", "9"], "lora: 9: must be at most 8, the rank of "),
        (
            ["--lora", "2", "--lora-targets", "to_q", "to_x"],
            "configuration, model: lora_targets: to_x: names no layer; there are to_q, to_k, to_v, to_out.0, ",
        ),
        (["--lora", "2", "model.params.trainable=all"], "lora: 2: with trainable: all; "),
        (["--lora", "2", "model.params.sd_locked=false"], "lora: 2: with sd_locked: false; "),
        (["model.params.lora=0"], "field model.params.lora: 0 input should be greater than or equal to 1"),
        (["--lora-targets", "to_q"], "--lora-targets without --lora: "),
    ],
)
def test_what_cannot_be_is_refused(cli, scenes, tmp_path, start, words, told):
    given = ["--pretrain-path", start, "model.params.trainable=fusion", *words]
    assert told in cli.refused("train", *options(scenes, tmp_path / "logs", "run", *given))
    assert not (tmp_path / "logs").exists()


def test_targets_and_a_plain_controlnet(tmp_path, start):
    config = OmegaConf.load(SMALL)
    config.model.params.trainable = "fusion"
    model = create_model(config, start, lora=1, lora_targets=["attn2.to_k", "net.2"])
    added = [key for key in model.state_dict() if "lora_A" in key]
    layers = {key.split(".lora_A")[0].split("transformer_blocks.0.")[1] for key in added}
    assert layers == {"attn2.to_k", "ff.net.2"}
    # but for rounding: by where matrices lie in memory, some machines add up in another order
    torch.testing.assert_close(prediction(model), prediction(create_model(SMALL, start)), rtol=0, atol=1e-12)
    plain = create_model(config, ssl_stage_config=None, lora=1)
    trains = [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[1] for name in trains if not is_lora_weight(name)} == NEW

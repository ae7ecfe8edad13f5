"""Token ids, embeddings and what is remembered, against OpenAI's tokenizer, transformers and open_clip."""

import json
import os
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from cldm.start_weights import start_weights
from common.errors import InputError
from ldm.checkpoint import load_weights, save_state_dict
from ldm.checkpoint_names import published_names
from ldm.modules.encoders import END_ID, ClipTokenizer, FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.open_clip_names import as_open_clip, clip_weights

KEYS = Path(__file__).parents[1] / "golden" / "tisynth_full_keys.json"
TEXTS = ["A satellite image of farmland, roads & 3 houses; it's the 21st-century city's edge!", "", "forest"]
SMALL = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "intermediate_size": 96}


def small_clip(**options):
    torch.manual_seed(0)
    model = FrozenCLIPEmbedder(**SMALL, **options)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape)
    return model


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("A  PHOTO of\na cat ", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("", [49406, 49407]),
        ("hello world!", [49406, 3306, 1002, 256, 49407]),
    ],
)
def test_known_token_ids(text, ids):
    assert ClipTokenizer()([text])[0].tolist() == ids + [END_ID] * (77 - len(ids))


def test_token_ids_equal_openais_tokenizer():
    texts = [*TEXTS, "Héllo wörld — 遥感图像\n  two   spaces", "naïve 🛰 imagery, 1234 m² / 5%", "x" * 500, "a b " * 60]
    assert torch.equal(ClipTokenizer(pad_token=0)(texts), SimpleTokenizer()(texts))


def test_typographic_texts_are_read_as_published():
    texts = ["“roads” of the city’s edge", "ﬁelds ＆ ｆｏｒｅｓｔ", "water &amp; road", "\ufeffcafé"]
    assert torch.equal(ClipTokenizer(pad_token=0)(texts), SimpleTokenizer()(texts))
    reading = ClipTokenizer(max_length=4).reading("‘ﬁelds’ road", 1)
    assert (reading.read, reading.left_out) == ("'fields", "' road")


def test_long_text_keeps_its_end_token():
    tokens = ClipTokenizer(max_length=8)(["one two three four five six seven eight nine"])
    assert tokens.shape == (1, 8)
    assert tokens[0, 0] == 49406
    assert tokens[0, -1] == END_ID


def test_no_texts():
    assert ClipTokenizer()([]).shape == (0, 77)
    assert small_clip()([]).shape == (0, 77, 48)


@pytest.mark.parametrize("layer", ["last", "pooled", "hidden"])
def test_clip_equals_transformers(layer):
    model = small_clip(layer=layer, layer_idx=-2 if layer == "hidden" else None)
    oracle = CLIPTextModel(
        CLIPTextConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    ).eval()
    prefix = "transformer.text_model."
    oracle.load_state_dict({key.removeprefix(prefix): value for key, value in model.state_dict().items()})
    with torch.no_grad():
        output = oracle(input_ids=ClipTokenizer()(TEXTS), output_hidden_states=True)
    expected = {
        "last": output.last_hidden_state,
        "pooled": output.pooler_output[:, None],
        "hidden": output.hidden_states[1],
    }[layer]
    torch.testing.assert_close(model.encode(TEXTS), expected)
    assert expected.std() > 0.1


def test_clip_has_the_published_keys():
    with torch.device("meta"):
        state = FrozenCLIPEmbedder().state_dict()
    published = json.loads(KEYS.read_text())
    prefix = "cond_stage_model."
    assert {prefix + key: list(value.shape) for key, value in state.items()} == {
        key: shape for key, shape in published.items() if key.startswith(prefix)
    }


def test_open_clip_has_the_keys_of_sd2_checkpoints():
    with torch.device("meta"):
        state = FrozenOpenCLIPEmbedder(layer="penultimate").state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    width = 1024
    block = {
        "ln_1.weight": [width],
        "ln_1.bias": [width],
        "ln_2.weight": [width],
        "ln_2.bias": [width],
        "attn.in_proj_weight": [3 * width, width],
        "attn.in_proj_bias": [3 * width],
        "attn.out_proj.weight": [width, width],
        "attn.out_proj.bias": [width],
        "mlp.c_fc.weight": [4 * width, width],
        "mlp.c_fc.bias": [4 * width],
        "mlp.c_proj.weight": [width, 4 * width],
        "mlp.c_proj.bias": [width],
    }
    expected = {
        "model.positional_embedding": [77, width],
        "model.text_projection": [width, width],
        "model.logit_scale": [],
        "model.token_embedding.weight": [49408, width],
        "model.ln_final.weight": [width],
        "model.ln_final.bias": [width],
        **{f"model.transformer.resblocks.{n}.{key}": shape for n in range(24) for key, shape in block.items()},
    }
    assert shapes == expected


@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_open_clip_equals_open_clip(layer):
    torch.manual_seed(0)
    text = {"width": 64, "heads": 4, "layers": 3}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    oracle = CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()
    model = FrozenOpenCLIPEmbedder(text_config={**text, "embed_dim": 32}, layer=layer)
    weights = {"model." + key: value for key, value in oracle.state_dict().items() if not key.startswith("visual.")}
    model.load_state_dict(weights)
    tokens = SimpleTokenizer()(TEXTS)
    with torch.no_grad():
        if layer == "last":  # CLIP's own text feature: the end token's embedding, projected
            ends = model.encode(TEXTS)[torch.arange(len(TEXTS)), tokens.argmax(-1)]
            torch.testing.assert_close(ends @ oracle.text_projection, oracle.encode_text(tokens))
        else:
            seen = {}
            oracle.transformer.resblocks[1].register_forward_hook(lambda *args: seen.update(output=args[2]))
            oracle.encode_text(tokens)
            torch.testing.assert_close(model.encode(TEXTS), oracle.ln_final(seen["output"]))


def test_open_clip_from_a_folder_of_diffusers(tmp_path):
    """Such folders have the blocks that SD 2.x reads, by transformers' names, and no projection."""
    text = {"width": 64, "heads": 4, "layers": 3, "embed_dim": 32}
    source, model, last = (
        torch.nn.ModuleDict({"cond_stage_model": FrozenOpenCLIPEmbedder(text_config=text, layer=layer)})
        for layer in ("penultimate", "penultimate", "last")
    )
    read = clip_weights(source["cond_stage_model"].model.state_dict(), 2)
    folder = published_names({f"text_model.{key}": value for key, value in read.items()})
    assert load_weights(model, folder).loaded == 2 + 2 + 2 * 12
    encoders = source["cond_stage_model"], model["cond_stage_model"]
    assert torch.equal(*(encoder.encode(TEXTS) for encoder in encoders))
    save_state_dict(folder, tmp_path / "text.safetensors")  # a start checkpoint of it takes the same
    start = start_weights(model, [tmp_path / "text.safetensors"])[0]
    assert start.keys() == as_open_clip(model.state_dict(), folder).keys() < model.state_dict().keys()
    with pytest.raises(InputError, match=r"12 missing \(cond_stage_model\.model\.transformer\.resblocks\.2\."):
        load_weights(last, folder)
    for key in ("ln_final.bias", "transformer.resblocks.1.ln_1.bias"):  # what is read must be there
        with pytest.raises(InputError, match=rf"1 missing \(cond_stage_model\.model\.{key}\)"):
            load_weights(
                model, {name: x for name, x in as_open_clip(model.state_dict(), folder).items() if key not in name}
            )


class Counting(FrozenCLIPEmbedder):
    """Counts the texts that went through the network."""

    texts = 0

    def embed(self, tokens):
        self.texts += len(tokens)
        return super().embed(tokens)


def test_each_distinct_prompt_is_embedded_once():
    model = Counting(**SMALL)
    first = model.encode(["a", "b", "a", "a"])
    assert model.texts == 2
    assert torch.equal(first[0], first[2])
    assert torch.equal(model.encode(["b", "a"]), first[[1, 0]])
    assert model.texts == 2
    first.zero_()  # what was handed out is not what is remembered
    assert model.encode("a").abs().max() > 0


def test_remembered_prompts_are_bounded():
    model = Counting(**SMALL, cache_size=2)
    model.encode(["a", "b", "c"])
    model.encode(["b", "c"])
    assert model.texts == 3
    assert model.encode(["a", "b", "c", "d"]).shape == (4, 77, 48)
    assert model.texts == 5
    assert list(model._cache) == ["c", "d"]


def test_no_cache():
    model = Counting(**SMALL, cache_size=0)
    model.encode("a")
    model.encode("a")
    assert model.texts == 2


@pytest.mark.parametrize("change", ["load", "copy", "dtype"])
def test_changed_weights_are_not_remembered(change):
    model, other = small_clip(), FrozenCLIPEmbedder(**SMALL)
    before = model.encode(TEXTS)
    if change == "load":
        model.load_state_dict(other.state_dict())
    elif change == "copy":
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
                mine.copy_(theirs)
    else:
        model.to(torch.bfloat16)
        assert model.encode(TEXTS).dtype == torch.bfloat16
        return
    torch.testing.assert_close(model.encode(TEXTS), other.encode(TEXTS))
    assert not torch.allclose(model.encode(TEXTS), before)


def test_frozen_and_in_eval_mode():
    model = FrozenCLIPEmbedder(**SMALL).train()
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    with torch.inference_mode():
        model.encode("a")
    layer = torch.nn.Linear(48, 1)  # what inference remembered can be used in training
    layer(model.encode("a")).sum().backward()
    assert layer.weight.grad.abs().max() > 0


def test_gradients_reach_an_encoder_that_learns():
    model = FrozenCLIPEmbedder(**SMALL, freeze=False)
    for _ in range(2):
        model.zero_grad()
        model.encode("a").square().sum().backward()
        assert model.transformer.text_model.final_layer_norm.weight.grad.abs().max() > 0


def test_weights_from_a_folder(tmp_path):
    model = small_clip()
    model.transformer.text_model.save_pretrained(tmp_path)
    torch.testing.assert_close(FrozenCLIPEmbedder(version=str(tmp_path)).encode(TEXTS), model.encode(TEXTS))


OPEN = {"width": 32, "heads": 2, "layers": 2, "vocab_size": 49408, "embed_dim": 32}


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("code", [False, True])
def test_pickled_weights_are_read_and_not_run(tmp_path, code):
    extra = {"extra": Code(tmp_path / "ran")} if code else {}
    model = small_clip()
    text = model.transformer.text_model
    text.config.save_pretrained(tmp_path)
    state = {f"text_model.{key}": value for key, value in text.state_dict().items()}
    torch.save({**state, **extra}, tmp_path / "pytorch_model.bin")
    other = FrozenOpenCLIPEmbedder(text_config=OPEN)
    torch.save({**other.model.state_dict(), "visual.proj": torch.zeros(1), **extra}, tmp_path / "open.pt")
    if code:
        with pytest.raises(InputError, match=r"version .*pytorch_model\.bin: contains code"):
            FrozenCLIPEmbedder(version=str(tmp_path))
        with pytest.raises(InputError, match=r"open\.pt: contains code"):
            FrozenOpenCLIPEmbedder(text_config=OPEN, version=str(tmp_path / "open.pt"))
        assert not (tmp_path / "ran").exists()
    else:
        torch.testing.assert_close(FrozenCLIPEmbedder(version=str(tmp_path)).encode(TEXTS), model.encode(TEXTS))
        read = FrozenOpenCLIPEmbedder(text_config=OPEN, version=str(tmp_path / "open.pt"))
        torch.testing.assert_close(read.encode(TEXTS), other.encode(TEXTS))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: FrozenCLIPEmbedder(version="no/such/folder"), "version no/such/folder"),
        (lambda: FrozenCLIPEmbedder(**SMALL, layer="first"), "last, hidden or pooled"),
        (lambda: FrozenCLIPEmbedder(**SMALL, layer="hidden"), "layer_idx None"),
        (lambda: FrozenCLIPEmbedder(**SMALL, vocab_size=100), "49408"),
        (lambda: FrozenCLIPEmbedder(hidden_size=50, num_heads=4), "not a multiple of num_heads 4"),
        (lambda: FrozenOpenCLIPEmbedder(arch="ViT-Z"), "arch ViT-Z"),
        (lambda: FrozenOpenCLIPEmbedder(text_config={"embed_dim": 8, "depth": 3}), "no depth"),
        (lambda: FrozenOpenCLIPEmbedder(layer="first"), "last or penultimate"),
    ],
)
def test_impossible_arguments_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()

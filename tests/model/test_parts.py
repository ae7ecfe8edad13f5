"""Parts of the model against closed forms, and against themselves run another way."""

import copy
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch._dynamo.testing import CompileCounter

from cldm.build import create_model
from cldm.fusion import AllInAttentionBlock, JointContext
from common.errors import InputError
from ldm.compiling import compiled
from ldm.models.autoencoder import SpaceToDepth
from ldm.modules.attention import BasicTransformerBlock, CachedContext, CrossAttention
from ldm.modules.ema import EMA
from ldm.modules.layers import GroupNorm, group_norm, timestep_embedding
from ldm.modules.unet import UNetModel
from ldm.util import instantiate_from_config
from tests.conftest import ROOT, SMALL


@pytest.fixture(scope="module")
def inputs():
    g = torch.Generator().manual_seed(0)
    cond = {
        "c_concat": [torch.rand(2, 3, 64, 64, generator=g)],
        "c_crossattn": [torch.randn(2, 77, 48, generator=g)],
        "c_ssl": [torch.randn(2, 4, 8, 8, generator=g)],
    }
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([900, 10]), cond


def test_attention_of_equal_keys_is_the_mean_of_values():
    layer = CrossAttention(8, 6, heads=2, dim_head=4)
    with torch.no_grad():
        layer.to_k.weight.zero_()
        layer.to_out[0].weight.copy_(torch.eye(8))
        layer.to_out[0].bias.zero_()
    x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    mean = layer.to_v(context).mean(1, keepdim=True).expand(2, 5, 8)
    assert torch.allclose(layer(x, context), mean, atol=1e-6)


def test_block_order_is_reference_mask_self_text_feed_forward():
    order = []
    block = AllInAttentionBlock(8, 2, 4, feature_dim=8, context_dim=6)
    for name in ("attn00_ls_trainable", "attn01_ssl_trainable", "attn1", "attn2", "ff"):
        getattr(block, name).register_forward_hook(lambda *_, name=name: order.append(name))
    tokens = torch.zeros(1, 4, 8)
    block(tokens, JointContext(reference=tokens, mask=tokens, text=torch.zeros(1, 2, 6)))
    assert order == ["attn00_ls_trainable", "attn01_ssl_trainable", "attn1", "attn2", "ff"]


def test_timestep_embedding_values():
    embedding = timestep_embedding(torch.tensor([0, 7]), 6)
    assert embedding[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert embedding[1, 1].item() == pytest.approx(torch.cos(torch.tensor(7 * 10000 ** (-1 / 3))).item(), abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 32, 8, 8), (2, 64, 16, 8), (1, 64, 32, 32)], ids=str)
def test_group_norm_is_the_formula(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    norm = group_norm(shape[1])
    groups = x.reshape(shape[0], 32, -1).double()
    expected = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(norm(x).double(), expected.reshape(shape), atol=1e-5)


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
def test_loss_is_the_distance_to_the_target(parameterization):
    model = create_model(SMALL, classes="MBRSC")
    model.parameterization = parameterization
    model.apply_model = lambda x, t, cond: torch.zeros_like(x)
    start, noise = torch.full((1, 48, 8, 8), 2.0), torch.full((1, 48, 8, 8), 3.0)
    signal = float(model.alphas_cumprod[500]) ** 0.5
    target = {"eps": 3.0, "v": signal * 3.0 - (1 - signal**2) ** 0.5 * 2.0, "x0": 2.0}[parameterization]
    assert model.p_losses(start, {}, torch.tensor([500]), noise).item() == pytest.approx(target**2, rel=1e-4)


def test_norm_groups_are_an_option():
    model = create_model(ROOT / "configs" / "model" / "tisynth_tiny.yaml")
    for part in (model.control_model, model.ssl_stage_model, model.model.diffusion_model):
        norms = [module for module in part.modules() if isinstance(module, GroupNorm)]
        assert norms and all(norm.num_groups == 8 and norm.num_channels >= 32 for norm in norms)


@pytest.mark.parametrize("deviations", [None, [[2.0, 1.0, 0.5], [0.35, 0.1, 0.2], [0.2, 0.1, 0.1]]])
def test_space_to_depth(deviations):
    stage = SpaceToDepth(4, deviations)
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    latent = stage.encode(image).mode()
    assert latent.shape == (2, 48 if deviations is None else 18, 4, 6)
    flat = torch.full((1, 3, 8, 8), 0.5)  # flat blocks have a mean and nothing else
    assert stage.encode(flat).mode()[:, 3:].abs().max() < 1e-6
    assert torch.allclose(stage.decode(stage.encode(flat).mode()), flat, atol=1e-6)
    again = stage.decode(latent)
    if deviations is None:
        assert torch.allclose(again, image, atol=1e-5)
        assert torch.allclose(latent.square().sum(), image.square().sum())  # a rotation
    gray = image.mean(1, keepdim=True).expand(-1, 3, -1, -1)  # has no opponent colors
    assert stage.encode(gray).mode().unflatten(1, (-1, 3))[:, :, 1:].abs().max() < 1e-5
    assert torch.allclose(stage.encode(again).mode(), latent, atol=1e-4)  # a projection


def test_running_average_is_the_formula():
    p = torch.nn.Parameter(torch.zeros(3))
    ema = EMA([("model.a.b", p)], decay=0.5)
    expected = 0.0
    for n in range(4):
        p.data.fill_(n + 1.0)
        ema.update()
        rate = min(0.5, (1 + n) / (10 + n))
        expected = rate * expected + (1 - rate) * (n + 1)
    assert ema.ab.tolist() == pytest.approx([expected] * 3)
    with ema.swapped():
        assert p.tolist() == pytest.approx([expected] * 3)
    assert p.tolist() == [4.0] * 3


def test_gradient_checkpointing_changes_no_gradient(golden_model, inputs):
    x, t, cond = inputs
    gradients = []
    for use in (False, True):
        model = copy.deepcopy(golden_model).requires_grad_(True)
        for module in model.modules():
            if isinstance(module, BasicTransformerBlock):
                module.use_checkpoint = use
        model.p_losses(x, cond, t, torch.ones_like(x)).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(g, gradients[1][n], rtol=1e-4, atol=1e-6) for n, g in gradients[0].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close(golden_model, inputs, dtype):
    x, t, cond = inputs
    with torch.no_grad():
        full = golden_model.apply_model(x, t, cond)
        with torch.autocast("cpu", dtype):
            mixed = golden_model.apply_model(x, t, cond).float()
        halved = copy.deepcopy(golden_model).to(dtype)
        true = halved.apply_model(x.to(dtype), t, {k: [v[0].to(dtype)] for k, v in cond.items()}).float()
    for half in (mixed, true):
        # random weights magnify rounding: bf16 keeps 8 bits
        assert (half - full).abs().mean() < 0.2 * full.abs().mean()


def test_channels_last_changes_nothing(golden_model, inputs):
    x, t, cond = inputs
    with torch.no_grad():
        other = copy.deepcopy(golden_model)
        pixelwise = other.control_model.zero_convs[0][0].weight  # (C, C, 1, 1)
        other.accelerate(shared_gradients=True)
        assert pixelwise.stride()[3] == 1
        other.accelerate()
        assert pixelwise.stride()[3] == pixelwise.shape[1]
        assert other.control_model.input_blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(other.apply_model(x, t, cond), golden_model.apply_model(x, t, cond), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (192, 64)])
def test_sizes_that_are_multiples_of_64(golden_model, height, width):
    latent = torch.randn(1, 4, height // 8, width // 8)
    cond = {"c_concat": [torch.rand(1, 3, height, width)], "c_crossattn": [torch.randn(1, 77, 48)], "c_ssl": [latent]}
    assert golden_model.apply_model(latent, torch.tensor([5]), cond).shape == latent.shape
    assert golden_model.decode_first_stage(latent).shape == (1, 3, height, width)
    assert golden_model.multiple == 64


def test_added_mask_features_reach_the_skips():
    config = OmegaConf.load(SMALL)
    torch.manual_seed(0)
    plain, added = create_model(config), None
    config.model.params.unet_config.params.add_mask_features = True
    torch.manual_seed(0)
    added = create_model(config)
    assert plain.state_dict().keys() == added.state_dict().keys()
    # every zero convolution of the mask branch has a reader now
    assert all(p.requires_grad for p in added.control_model.parameters())


def test_sd2_geometry_builds():
    unet = UNetModel(
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=[1, 2],
        channel_mult=[1, 2],
        num_head_channels=16,
        context_dim=8,
        use_linear_in_transformer=True,
    )
    assert unet.input_blocks[1][1].proj_in.weight.dim() == 2
    assert unet.input_blocks[3][1].transformer_blocks[0].attn1.heads == 4
    assert unet(torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 8)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("heads", [{}, {"num_heads": 2, "num_head_channels": 8}, {"num_heads": 5}])
def test_impossible_heads_are_refused(heads):
    with pytest.raises(InputError, match="heads"):
        UNetModel(
            in_channels=4,
            out_channels=4,
            model_channels=32,
            num_res_blocks=1,
            attention_resolutions=[1],
            channel_mult=[1],
            context_dim=8,
            **heads,
        )


def test_published_yaml_builds_unchanged(golden):
    model = create_model(golden / "tisynth_small.yaml")
    assert type(model).__name__ == "ControlLDM" and model.hint_encoding == "index"
    assert model.augmentation["translate_int_max"] == 0.125


def test_stable_diffusions_own_yaml_builds():
    """``v1-inference.yaml``: its names, its average and its schedule of rates, which are without effect here."""
    given = OmegaConf.to_container(OmegaConf.load(SMALL).model.params)
    names = ("unet_config", "first_stage_config", "cond_stage_config", "channels")
    params = {name: given[name] for name in names}
    params["unet_config"]["target"] = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    params["unet_config"]["params"].pop("add_mask_features", None)
    params |= {"use_ema": False, "scheduler_config": {"target": "ldm.lr_scheduler.LambdaLinearScheduler"}}
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    model = create_model(OmegaConf.create({"model": {"target": target, "params": params, "base_learning_rate": 1e-4}}))
    assert type(model).__name__ == "LatentDiffusion"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"unet_config.target": "ldm.nowhere.Net"}, "ldm.nowhere.Net"),
        ({"parameterization": "x9"}, "parameterization"),
        ({"trainable": "some"}, "trainable"),
        ({"color": 3}, "color"),
    ],
    ids=str,
)
def test_wrong_configurations_are_refused(change, says):
    config = OmegaConf.load(SMALL)
    for key, value in change.items():
        OmegaConf.update(config.model.params, key, value, force_add=True)
    with pytest.raises(InputError, match=says):
        create_model(config)


def test_compiled_network_agrees():
    # what torch.compile traces (the cached keys and values among it), without the compiler's minutes
    config = OmegaConf.load(SMALL)
    config.model.params.unet_config.params.update({"channel_mult": [1], "attention_resolutions": [1]})
    torch.manual_seed(0)
    unet = create_unet(config)
    compiled = copy.deepcopy(unet)
    compiled.compile(backend="eager", fullgraph=True)
    x, t, text = torch.randn(2, 48, 8, 8), torch.tensor([3, 900]), CachedContext(torch.randn(2, 7, 16))
    features = [torch.randn(2, c, 8, 8) for c in (8, 8, 8)]
    with torch.no_grad():
        for _ in range(2):  # the second call reads what the first has cached
            inputs = (x, t, text, features, features)
            assert torch.allclose(compiled(*inputs), unet(*inputs), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_compiled_blocks_are_shared_and_agree(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)  # puts the limits back, too
    monkeypatch.setattr(torch._dynamo.config, "accumulated_recompile_limit", 256)
    torch._dynamo.reset()
    config = OmegaConf.load(SMALL)
    torch.manual_seed(0)
    unet = create_unet(config)
    text = torch.randn(2, 7, 16)
    x, t = torch.randn(2, 48, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        skips = unet.encode(x, unet.embed_time(t, x.dtype), text)
        features = [torch.randn_like(skip) for skip in skips]
        features.append(torch.randn_like(features[-1]))
        expected = unet(x, t, text, features, features)
        graphs = CompileCounter()
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
        blocks = compiled([unet], "blocks")
        kept = CachedContext(text)
        for _ in range(2):
            assert torch.allclose(unet(x, t, kept, features, features), expected, atol=1e-5)
    assert 1 < graphs.frame_count < len(blocks)  # equal blocks share one, and what is cached makes no other
    torch._dynamo.reset()


def create_unet(config):
    unet = instantiate_from_config(config.model.params.unet_config)
    with torch.no_grad():
        for p in unet.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
    return unet.eval()

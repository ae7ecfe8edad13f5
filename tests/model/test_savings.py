"""Parts of the networks that do not run at every step, against their equations; leaving none out changes no bit."""

from functools import partial

import pytest
import torch

from cldm.benchmark.cost import synthesis_flops
from cldm.build import load_config, outline
from cldm.conditions import Conditions
from cldm.fusion import AllInAttentionBlock, BranchFeature, JointContext
from cldm.guidance import Acting, ConditionGuidance, SpannedGuidance
from cldm.reuse import EncoderReuse, key_steps
from cldm.synthesis.options import SamplingOptions
from ldm.models.guidance import ClassifierFreeGuidance, IntervalGuidance, NoGuidance, SplitGuidance
from ldm.models.sampling import sample
from ldm.models.schedule import make_scheduler
from ldm.modules.attention import to_tokens
from tests.conftest import SMALL, small_model

STEPS = 4


@pytest.fixture(scope="module")
def model():
    return small_model(spread=0.2)


@pytest.fixture(scope="module")
def cond():
    generator = torch.Generator().manual_seed(0)
    return Conditions(
        mask=torch.rand(2, 3, 32, 32, generator=generator),
        reference=torch.randn(2, 48, 8, 8, generator=generator),
        text=torch.randn(2, 7, 16, generator=generator),
    )


@pytest.fixture(scope="module")
def noise():
    return torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(model):
    """How many images each network has seen."""
    seen = dict.fromkeys(("control_model", "ssl_stage_model", "encoder", "decoder"), 0)
    unet = model.model.diffusion_model
    parts = {"encoder": unet.input_blocks[0], "decoder": unet.out}

    def count(name, module, given, result):
        seen[name] += len(result if isinstance(result, torch.Tensor) else result[0])

    hooks = [parts.get(name, getattr(model, name, None)).register_forward_hook(partial(count, name)) for name in seen]
    yield seen
    for hook in hooks:
        hook.remove()


def run(model, cond, noise, steps=STEPS, **how):
    return sample(model, cond, cond.with_text(torch.zeros_like(cond.text)), noise, steps, guidance_scale=3.0, **how)


def times_of(model, steps=STEPS, sampler="ddim"):
    scheduler = make_scheduler(sampler, model.betas)
    scheduler.set_timesteps(steps)
    return [float(t) for t in scheduler.timesteps]


@pytest.mark.parametrize("make", [ClassifierFreeGuidance, SplitGuidance, partial(ConditionGuidance, mask_scale=2.0)])
def test_guidance_within_an_interval(model, cond, noise, calls, make):
    uncond = cond.with_text(torch.zeros_like(cond.text))
    guided = IntervalGuidance(model, cond, uncond, 3.0, make=make, low=0.3, high=0.7)
    with torch.no_grad():
        for t in (299, 300, 700, 701):
            at, before = torch.full((2,), t), calls["decoder"]
            other = make(model, cond, uncond, 3.0) if 300 <= t <= 700 else NoGuidance(model, cond)
            got = guided(noise, at)
            images = calls["decoder"] - before
            assert torch.equal(got, other(noise, at))
            assert images == 2 if t in (299, 701) else images > 2


def test_strength_is_the_equation():
    torch.manual_seed(0)
    block = AllInAttentionBlock(8, 2, 4, 6, context_dim=5)
    x, text, map = torch.randn(2, 9, 8), torch.randn(2, 3, 5), torch.randn(2, 6, 4, 4)
    attention = block.attn01_ssl_trainable
    bias = attention.to_out[0].bias
    whole = attention(x, to_tokens(map)) - bias
    for strength in (0.0, 0.4, 1.0, 1.7):
        for keep in (False, True):
            got = attention(x, BranchFeature(map, strength, keep))
            assert torch.allclose(got, strength * whole + bias, atol=1e-6)
    silent = block(x, JointContext(None, None, text))
    zeros = torch.zeros(2, 16, 6)
    assert torch.equal(silent, block(x, JointContext(zeros, zeros, text)))
    assert torch.equal(BranchFeature(map, 0.5).added_to(2 * map), 2.5 * map)


def test_a_branch_that_does_not_act_is_not_computed(model, cond, noise, calls):
    def spanned(mask, reference):
        return partial(SpannedGuidance, make=ClassifierFreeGuidance, mask=mask, reference=reference)

    plain = run(model, cond, noise)
    assert torch.equal(run(model, cond, noise, guidance=spanned(Acting(), Acting())), plain)
    before = dict(calls)
    first, last = Acting(1.0, 0.0, 0.5), Acting(0.5, 0.5, 1.0)
    assert not torch.equal(run(model, cond, noise, guidance=spanned(first, last)), plain)
    assert {name: (calls[name] - before[name]) / 4 for name in calls} == {
        "control_model": STEPS / 2,
        "ssl_stage_model": STEPS / 2,
        "encoder": STEPS,
        "decoder": STEPS,
    }
    silent, zero = run(model, cond, noise, guidance=spanned(Acting(0.0), Acting())), []
    hook = model.control_model.register_forward_hook(lambda m, a, maps: zero.append(1) or [0 * f for f in maps])
    assert torch.allclose(run(model, cond, noise), silent, atol=1e-6) and zero
    hook.remove()


@pytest.mark.parametrize("sampler", ["ddim", "euler", "unipc"])
def test_key_steps_at_every_step_change_no_bit(model, cond, noise, sampler):
    times = times_of(model, 3, sampler)
    for whole in (False, True):
        reusing = EncoderReuse(model, times, range(3), whole)
        assert torch.equal(run(reusing, cond, noise, 3, sampler=sampler), run(model, cond, noise, 3, sampler=sampler))


def test_encoders_run_at_key_steps_alone(model, cond, noise, calls):
    times, keys = times_of(model), [0, 1]
    results = {}
    for whole, at_once in ((False, 1), (True, 1), (True, 2), (True, 9)):
        before = dict(calls)
        results[whole, at_once] = run(EncoderReuse(model, times, keys, whole, at_once), cond, noise)
        assert {name: (calls[name] - before[name]) / 4 for name in calls} == {
            "control_model": 2,
            "ssl_stage_model": 2,
            "encoder": 2 if whole else STEPS,
            "decoder": STEPS,
        }
        one = Conditions(mask=cond.mask[1:], reference=cond.reference[1:], text=cond.text[1:])
        alone = run(EncoderReuse(model, times, keys, whole, at_once), one, noise[1:])
        assert torch.allclose(alone, results[whole, at_once][1:], atol=1e-5)
    assert torch.allclose(results[True, 1], results[True, 2], atol=1e-5)
    assert torch.allclose(results[True, 1], results[True, 9], atol=1e-5)
    assert not torch.allclose(results[True, 1], results[False, 1], atol=1e-3)


def test_a_step_between_is_the_equation(model, cond, noise):
    reusing = EncoderReuse(model, [900.0, 500.0], [0])
    unet, other = model.model.diffusion_model, torch.randn(2, 48, 8, 8)
    with torch.no_grad():
        reusing.apply_model(noise, torch.full((2,), 900), cond)
        got = reusing.apply_model(other, torch.full((2,), 500), cond)
        key, now = torch.full((2,), 900), torch.full((2,), 500)
        features = model.branch_features(noise, key, cond)
        skips = list(unet.encode(noise, unet.embed_time(key, noise.dtype), cond.context))
        assert torch.equal(got, unet(other, now, cond.context, *features, skips=skips))


def test_key_steps():
    assert key_steps(("early",), 50) == [0, 1, 2, 3, 5, 10, 15, 25, 35]
    assert key_steps(("early",), 10) == [0, 1, 2, 3, 5, 7]
    assert key_steps(("every-3",), 8) == [0, 3, 6]
    assert key_steps(("2", "5"), 8) == [0, 2, 5]


def test_operations_are_counted_without_weights():
    model = outline(load_config(SMALL))

    def flops(**options):
        return synthesis_flops(model, SamplingOptions(steps=2, **options), 32, 32)

    once, none = flops(scale=1.0), flops(scale=1.0, mask_strength=0.0, reference_strength=0.0)
    whole, together = (flops(scale=1.0, reuse_encoder="all", key_steps=("0",), steps_at_once=n) for n in (1, 3))
    assert none < whole == together < once

"""Guidance by reference, mask and text against its equation, and how many predictions it takes."""

import itertools

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from cldm.conditions import Conditions
from cldm.guidance import ConditionGuidance
from cldm.synthesis.guiding import guidance_of
from cldm.synthesis.options import SamplingOptions
from ldm.models.guidance import ClassifierFreeGuidance, NoGuidance, SplitGuidance, rescaled

MASK, REFERENCE, TEXT, IGNORED = 2.0, 30.0, 500.0, 0.25
X, T = torch.zeros(3, 1, 2, 2), torch.zeros(3)
COND = Conditions(
    mask=torch.full((3, 2, 4, 4), MASK),
    reference=torch.full((3, 1, 2, 2), REFERENCE),
    text=torch.full((3, 1, 1), TEXT),
)
UNCOND = COND.with_text(torch.zeros(3, 1, 1))


class Product:
    """Predicts (1 + mask) (1 + reference) (1 + text): conditions that do not simply add up; counts images."""

    ignored_hint = IGNORED

    def __init__(self):
        self.images = 0

    def apply_model(self, x, t, cond):
        assert len(x) == len(t) == len(cond.text) == len(cond.mask) == len(cond.reference)
        self.images += len(x)
        parts = (1 + one.mean(tuple(range(1, one.ndim))) for one in (cond.mask, cond.reference, cond.text))
        return torch.ones_like(x) * torch.stack(list(parts)).prod(0)[:, None, None, None]


def guided(model, scale, **scales):
    return ConditionGuidance(model, COND, UNCOND, scale, **scales)(X, T)


@pytest.mark.parametrize("split", [False, True])
def test_it_is_the_equation(split):
    none = 1 + IGNORED  # no mask is what the hint shows where pixels are to be ignored; no reference, no text: zero
    reference = (1 + IGNORED) * (1 + REFERENCE)
    mask = (1 + MASK) * (1 + REFERENCE)
    text = (1 + MASK) * (1 + REFERENCE) * (1 + TEXT)
    for s_text, s_mask, s_reference in itertools.product((0.0, 1.0, 2.0, 3.5), repeat=3):
        got = guided(Product(), s_text, mask_scale=s_mask, reference_scale=s_reference, split=split)
        expected = none + s_reference * (reference - none) + s_mask * (mask - reference) + s_text * (text - mask)
        assert torch.allclose(got, torch.full_like(X, expected), rtol=1e-5), (s_text, s_mask, s_reference)


@pytest.mark.parametrize(
    ("scales", "predictions"),
    [((1, 1, 1), 1), ((9, 1, 1), 2), ((9, 3, 1), 3), ((9, 1, 3), 4), ((9, 3, 2), 4), ((9, 3, 3), 3), ((3, 3, 3), 2)],
)
def test_what_takes_no_part_is_not_predicted(scales, predictions):
    model = Product()
    guided(model, scales[0], mask_scale=scales[1], reference_scale=scales[2])
    assert model.images == predictions * len(X)


def test_scales_of_one_are_guidance_by_the_text_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    cond = Conditions(
        mask=torch.rand(3, 2, 4, 4, generator=generator),
        reference=torch.rand(3, 1, 2, 2, generator=generator),
        text=torch.rand(3, 1, 1, generator=generator),
    )
    uncond = cond.with_text(torch.zeros(3, 1, 1))
    model = Product()
    assert torch.equal(
        ConditionGuidance(model, cond, uncond, 7.3)(X, T), ClassifierFreeGuidance(model, cond, uncond, 7.3)(X, T)
    )
    assert torch.equal(ConditionGuidance(model, cond, uncond, 1.0)(X, T), NoGuidance(model, cond)(X, T))


class Wave:
    """Predicts the noisy latent to a power of the mask, and the text: another spread for each condition."""

    ignored_hint, fuses, betas = IGNORED, True, torch.zeros(4)

    def apply_model(self, x, t, cond):
        mask, reference, text = (one.flatten(1).mean(1)[:, None, None, None] for one in vars_of(cond))
        return x ** (1 + mask / 2) * (1 + reference / 30) + text * x.flip(3)


def vars_of(cond):
    return cond.mask, cond.reference, cond.text


@pytest.mark.parametrize(
    "options", [{}, {"split_guidance": True}, {"mask_scale": 2.5}, {"guidance_interval": (0.0, 1.0)}]
)
def test_a_rescaled_guidance_is_that_of_diffusers(options):
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, model = SamplingOptions(scale=6.0, **options), Wave()
    rescaling = SamplingOptions(scale=6.0, guidance_rescale=0.7, **options)
    default = SplitGuidance if plain.split_guidance else ClassifierFreeGuidance
    as_it_is = (guidance_of(model, plain) or default)(model, COND, UNCOND, 6.0)(x, T)
    got = guidance_of(model, rescaling)(model, COND, UNCOND, 6.0)(x, T)
    conditional = model.apply_model(x, T, COND)
    assert torch.allclose(got, rescale_noise_cfg(as_it_is, conditional, 0.7), rtol=1e-5)
    assert not torch.allclose(got, as_it_is, rtol=0.1)
    assert guidance_of(model, SamplingOptions(scale=1.0, guidance_rescale=0.7)) is None  # nothing guides
    alone = rescaled(as_it_is[1:2], conditional[1:2], 0.7)  # an image's spread is its own, whatever is beside it
    assert torch.equal(alone, rescaled(as_it_is, conditional, 0.7)[1:2]) and rescaled(as_it_is, x, 0.0) is as_it_is

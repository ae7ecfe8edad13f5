"""Guidance by reference, mask and text against its equation, and how many predictions it takes."""

import itertools

import pytest
import torch

from cldm.conditions import Conditions
from cldm.guidance import ConditionGuidance
from ldm.models.guidance import ClassifierFreeGuidance, NoGuidance

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

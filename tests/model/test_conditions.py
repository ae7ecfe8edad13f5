"""Conditions: built of a batch in one way, and what they remember."""

import pytest
import torch

from cldm.conditions import Conditions
from common.rng import Stream, item_noise, seed_from


@pytest.fixture(scope="module")
def batch():
    g = torch.Generator().manual_seed(0)
    return {
        "hint": torch.rand(2, 3, 64, 64, generator=g),
        "ssl": torch.rand(2, 3, 64, 64, generator=g) * 2 - 1,
        "txt": torch.randn(2, 7, 48, generator=g),  # the records' model takes embeddings for texts
    }


@torch.no_grad()
def test_a_reference_is_the_mode_of_its_posterior_or_a_sample_by_seed(golden_model, batch):
    posterior = golden_model.encode_first_stage(batch["ssl"])
    scale = golden_model.scale_factor
    assert torch.equal(golden_model.conditions(batch).reference, scale * posterior.mode())
    drawn = golden_model.conditions(batch, [3, 4]).reference
    noise = item_noise([seed_from(seed, Stream.REFERENCE_LATENT) for seed in (3, 4)], drawn.shape[1:])
    assert torch.equal(drawn, scale * posterior.sample(noise)) and not torch.equal(drawn, scale * posterior.mode())


def test_published_tensors_of_one_condition_are_joined(batch):
    halves = [batch["hint"][:, :1], batch["hint"][:, 1:]]
    cond = Conditions.from_published({"c_concat": halves, "c_crossattn": [batch["txt"], batch["txt"]]})
    assert torch.equal(cond.mask, batch["hint"]) and cond.text.shape == (2, 14, 48) and cond.reference is None


def test_joined_texts_are_of_one_length():
    one, other = (
        Conditions(mask=torch.full((2, 1, 4, 4), value), text=torch.full((2, length, 3), value))
        for length, value in ((2, 1.0), (6, 5.0))
    )
    both = one.joined(other)
    assert both.mask[:, 0, 0, 0].tolist() == [1, 1, 5, 5] and both.reference is None
    assert both.text.shape == (4, 6, 3) and both.text[:, :, 0].mean(1).tolist() == [1, 1, 5, 5]


def test_hints_are_encoded_once_while_nothing_learns(golden_model, batch, monkeypatch):
    encoded = []
    for branch in golden_model.branches:
        encode = branch.encode_hint
        monkeypatch.setattr(branch, "encode_hint", lambda hint, encode=encode: (encoded.append(1), encode(hint))[1])
    x, t = torch.zeros(2, 4, 8, 8), torch.tensor([5, 900])
    with torch.no_grad():
        cond = golden_model.conditions(batch)
        first, again = (golden_model.apply_model(x, t, cond) for _ in range(2))
    assert len(encoded) == 2 and torch.equal(first, again)
    golden_model.apply_model(x, t, cond)  # with gradients: weights may have changed since
    assert len(encoded) == 4

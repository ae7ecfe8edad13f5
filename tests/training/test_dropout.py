"""What a step drops belongs to its items: the same after a stop, and another in each process."""

import torch
from torch import nn

from ldm.training.dropout import seed_dropout


def dropped(model, seeds):
    seed_dropout(model, seeds)
    return model(torch.ones(1000)) == 0


def test_the_items_decide_what_is_dropped():
    model = nn.Sequential(nn.Dropout(0.5))
    first = dropped(model, [3, 5])
    torch.rand(7)
    assert torch.equal(first, dropped(model, torch.tensor([3, 5])))
    assert not torch.equal(first, dropped(model, [3, 6])) and 400 < first.sum() < 600


def test_a_model_without_dropout_draws_as_before():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    seed_dropout(nn.Sequential(nn.Dropout(0.0)), [3])
    assert torch.equal(torch.rand(1), expected)

"""Memory that is counted: known answers of the counter, and what must hold between the works of a table."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cldm.benchmark import memory, memory_table
from cldm.benchmark.memory import LiveBytes, count_synthesis, count_training
from cldm.build import load_config
from tests.conftest import SMALL
from tests.training.test_lora import RANK, TRAINED

SIZE = (32, 32)


def test_tensors_count_as_long_as_they_live():
    with FakeTensorMode(), LiveBytes() as live:
        a = torch.empty(1000)
        b = a + 1
        c = b.view(10, 100)
        assert live.now == live.peak == 8000
        del a, b
        assert live.now == 4000  # held by its view
        d = c.to(torch.bfloat16)
        assert (live.now, live.peak) == (6000, 8000)
        del c, d
    assert live.now == 0


def test_a_linear_layer_keeps_its_input_for_the_gradient():
    with FakeTensorMode() as mode:
        layer, x = torch.nn.Linear(50, 20, bias=False), torch.empty(8, 50)
    live = LiveBytes()
    live.ignore([layer.weight, x])
    with mode, live:
        y = layer(x.clone())
        assert live.now == 4 * 8 * (50 + 20)
        with torch.no_grad():
            layer(x)
        assert live.now == 4 * 8 * (50 + 20) and live.peak == 4 * 8 * (50 + 20 + 20)
        del y
    assert live.now == 0


def test_works_compare_as_they_must():
    config = load_config(SMALL)
    whole, cheap = (count_training(config, SIZE, 2, False, again, RANK) for again in (False, True))
    for counted in (whole, cheap):
        assert counted.gradients == 4 * TRAINED and counted.optimizer == 8 * TRAINED
        static = counted.weights + counted.optimizer
        most = max(counted.gradients, counted.activations)
        assert static + most <= counted.together <= static + counted.gradients + 2 * counted.activations
    assert cheap.activations < whole.activations and cheap.weights == whole.weights
    painted = count_synthesis(config, SIZE, 2, True)
    assert painted.weights < 0.55 * whole.weights and painted.together == painted.weights + painted.activations


def test_the_table(cli, monkeypatch):
    refused = cli.refused("count_memory", "--config", SMALL, "--size", 33)
    assert "--size 33 33: must be multiples of 8" in refused
    words = ["--config", SMALL, "--size", 32, "--batch-size", 3, "--lora"]
    assert "lora: 9: must be at most 8" in cli.refused("count_memory", *words, 9)

    def count_nothing(config, size, batch_size, *settings):
        return memory.Memory(*(batch_size * part * memory.GIB for part in range(5)))

    monkeypatch.setattr(memory_table, "count_training", count_nothing)
    monkeypatch.setattr(memory_table, "count_synthesis", count_nothing)
    rows = [line.strip("| ").split(" | ") for line in cli("count_memory", *words, 2).splitlines()]
    assert len(rows) == 2 + 8 + 2 and {len(row) for row in (rows[0], *rows[2:])} == {9}
    assert rows[6] == ["training, LoRA 2", "32-true", "3", "no", "0.00", "3.00", "6.00", "9.00", "12.00"]
    assert rows[-1][:3] == ["synthesis", "16", "3"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--measure: no GPU here" in cli.refused("count_memory", *words, 2, "--measure")

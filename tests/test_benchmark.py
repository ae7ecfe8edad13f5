"""The benchmark by the command line: what it counts, not how fast it is."""

import json

import pytest
import torch
from torch.nn import functional as F

from cldm.benchmark import bench, cost, measure
from cldm.benchmark.bench import Bench
from cldm.benchmark.timing import count_flops
from cldm.benchmark.training import encoder_with_gradients, recomputed
from cldm.options import BenchmarkOptions
from tests.conftest import SMALL


def test_benchmark_counts_and_compares(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PRESETS", ("balanced", "fast"))  # the others paint 50 and 20 guided steps
    out = tmp_path / "bench.json"
    short = ["--size", 32, "--steps", 2, "--repeats", 1, "--device", "cpu", "--presets"]
    said = cli("benchmark", "--config", SMALL, *short, "--out", out)
    result = json.loads(out.read_text())
    peer = result["peer"]
    assert "peer, its hints encoded once" in said and result["flops_per_step"] > 0
    # the peer encodes both hints at every step; without that it has less to do
    assert 0 < peer["hints_once"]["flops_per_step"] < peer["flops_per_step"]
    assert peer["time_ratio"] > 0 and result["images_per_second"] > 0 and result["training_samples_per_second"] > 0
    timed = ("create_model_seconds", "seconds_per_step", "sample_seconds_per_step", "p_losses_seconds")
    assert all(result[name] > 0 for name in timed) and set(result["peaks_gib"]) == {"synthesis", "training"}
    assert set(result["preset_images_per_second"]) == {"balanced", "fast"}
    assert set(result["ablations"]) == {
        "text and hints anew each step",
        "one text after the other",
        "attention not fused",
        "not channels-last",
    }
    assert set(result["training_ablations"]) == {
        "latents and texts given",
        "optimizer not fused",
        "encoder within autograd",
        "use_checkpoint",
        "not channels-last",
    }


def test_what_was_measured_before_a_failure_is_kept(cli, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure, "TrainingBench", full)
    out = tmp_path / "bench.json"
    short = ["--size", 32, "--steps", 1, "--repeats", 1, "--device", "cpu", "--no-peer"]
    with pytest.raises(torch.OutOfMemoryError):
        cli("benchmark", "--config", SMALL, *short, "--out", out)
    assert json.loads(out.read_text())["seconds_per_step"] > 0


def test_savings_leave_out_work_and_change_nothing():
    bench = Bench(BenchmarkOptions(config=SMALL, size=(32,), batch_size=2, steps=2), torch.device("cpu"))
    every = bench.step()
    other = bench.step(reuse=False)
    assert count_flops(every) < count_flops(other)
    assert torch.allclose(every(), other(), atol=1e-4)


def test_fused_attention_counts_on_a_cpu():
    query = torch.rand(1, 2, 8, 4)
    assert count_flops(lambda: F.scaled_dot_product_attention(query, query, query)) == 2 * (2 * 2 * 8 * 8 * 4)


def test_wrong_sizes_and_devices_are_refused(cli, monkeypatch):
    assert "--size 33 33: must be multiples of" in cli.refused("benchmark", "--config", SMALL, "--size", 33)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU here" in cli.refused("benchmark", "--config", SMALL, "--device", "cuda")


def test_operations_of_presets_are_counted(cli, monkeypatch):
    monkeypatch.setattr(cost, "SAVINGS", {})
    monkeypatch.setattr(cost, "PRESETS", ("published", "fast"))
    said = cli("benchmark", "--config", SMALL, "--size", 32, "--flops")
    rows = [line.strip("| ").split(" | ") for line in said.splitlines()]
    shares = {row[0]: float(row[2]) for row in rows[2:]}
    assert shares["`--preset published`"] == 1 and 0.05 < shares["`--preset fast`"] < 0.5


def test_lower_precisions_are_compared(cli, tmp_path):
    out = tmp_path / "parity.json"
    cli("benchmark", "--config", SMALL, "--size", 32, "--device", "cpu", "--parity", "--out", out)
    found = json.loads(out.read_text())["precisions"]
    assert all(one["within"] for one in found.values()) and 0 < found["16"]["prediction"] < found["bf16"]["prediction"]


def test_what_a_training_is_timed_with_leaves_the_model_as_it_was():
    bench = Bench(BenchmarkOptions(config=SMALL, size=(32,), batch_size=2, repeats=1), torch.device("cpu"))
    trains = [p.requires_grad for p in bench.model.parameters()]
    with encoder_with_gradients(bench.model):
        assert all(p.requires_grad for p in bench.model.model.diffusion_model.input_blocks.parameters())
    with recomputed(bench.model):
        assert all(m.use_checkpoint for m in bench.model.modules() if hasattr(m, "use_checkpoint"))
    assert [p.requires_grad for p in bench.model.parameters()] == trains
    assert not any(m.use_checkpoint for m in bench.model.modules() if hasattr(m, "use_checkpoint"))

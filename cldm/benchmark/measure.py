"""All numbers of one configuration, as ratios to what each is compared with, and their table."""

from __future__ import annotations

import platform
from typing import Any

import torch

from cldm.benchmark.bench import Bench, ablations
from cldm.benchmark.peer import ControlNetPeer
from cldm.benchmark.timing import count_flops, in_turn, matmul_rate, peak_memory, seconds
from cldm.options import BenchmarkOptions
from common.devices import pick_device
from common.trust import trust


def measure(options: BenchmarkOptions) -> dict[str, Any]:
    """All numbers of one configuration; those of the peer only with the peer.

    Raises:
        InputError: a configuration, size or device that cannot be.
    """
    trust(options.trust)
    device = torch.device(pick_device(options.device))
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats(device)
    bench = Bench(options, device)
    rate = matmul_rate(device, bench.dtype)
    flops = count_flops(bench.step())
    ablated = ablations(bench)
    works = dict(ablated)
    peer = None
    if not options.no_peer:
        peer = ControlNetPeer(bench.model, bench.prompts, bench.x, bench.hint, bench.dtype, device)
        works["peer"] = peer.step()
        works["peer, hints once"] = peer.step(reuse_hints=True)
    times = in_turn(works, device, options.repeats)
    step = times["all savings"]
    result: dict[str, Any] = {
        "config": str(options.config),
        "size": list(options.size),
        "batch_size": options.batch_size,
        "precision": options.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "seconds_per_step": step,
        "flops_per_step": flops,
        "matmul_flops_per_second": rate,
        "share_of_matmul_rate": flops / step / rate,
        "ablations": {name: times[name] / step for name in list(ablated)[1:]},
    }
    bench.to(False)
    contiguous = bench.step()
    bench.to(True)
    pair = in_turn({"contiguous": contiguous, "channels last": bench.step()}, device, options.repeats)
    result["ablations"]["not channels-last"] = pair["contiguous"] / pair["channels last"]
    result["images_per_second"] = options.batch_size / seconds(bench.images, device, 1)
    result["steps_per_image"] = options.steps
    if peer is not None:
        peer_flops, once_flops = count_flops(peer.step()), count_flops(peer.step(reuse_hints=True))
        result["peer"] = {
            "seconds_per_step": times["peer"],
            "flops_per_step": peer_flops,
            "time_ratio": times["peer"] / step,
            "time_per_flop_ratio": (times["peer"] / peer_flops) / (step / flops),
            "hints_once": {
                "flops_per_step": once_flops,
                "time_ratio": times["peer, hints once"] / step,
                "time_per_flop_ratio": (times["peer, hints once"] / once_flops) / (step / flops),
            },
        }
        if peer.decodes:
            took = seconds(lambda: peer.images(options.steps), device, 1)
            result["peer"]["images_per_second"] = options.batch_size / took
            result["peer"]["images_ratio"] = result["images_per_second"] / result["peer"]["images_per_second"]
    if not options.no_training:
        result["training_samples_per_second"] = bench.training()
    result["peak_memory_gib"] = peak_memory(device)
    return result


def table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [
        f"{result['config']}, {result['size']} px, batch {result['batch_size']}, {result['precision']}, "
        f"{result['device']}, torch {result['torch']}",
        f"  seconds a guided step     {result['seconds_per_step']:.4f}   ({result['flops_per_step'] / 1e9:.1f} GFLOP, "
        f"{result['share_of_matmul_rate']:.0%} of the measured matrix-product rate)",
        f"  images a second           {result['images_per_second']:.4f}   ({result['steps_per_image']} steps)",
    ]
    if "training_samples_per_second" in result:
        lines.append(f"  training samples a second {result['training_samples_per_second']:.3f}")
    lines.append(f"  peak memory               {result['peak_memory_gib']:.2f} GiB")
    for name, ratio in result["ablations"].items():
        lines.append(f"  {name:<34} {ratio:.2f} x the time")
    if peer := result.get("peer"):
        lines.append(
            f"  peer: {peer['seconds_per_step']:.4f} s a step, {peer['time_ratio']:.2f} x this project's time; "
            f"{peer['time_per_flop_ratio']:.2f} x per FLOP"
        )
        once = peer["hints_once"]
        lines.append(
            f"  peer, its hints encoded once: {once['time_ratio']:.2f} x this project's time; "
            f"{once['time_per_flop_ratio']:.2f} x per FLOP"
        )
    return "\n".join(lines)

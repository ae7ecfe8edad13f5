"""All numbers of one configuration, as ratios to what each is compared with, and their table."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from cldm.benchmark.bench import Bench, ablations
from cldm.benchmark.peer import ControlNetPeer
from cldm.benchmark.timing import count_flops, in_turn, matmul_rate, peak_memory, reset_peak_memory, seconds
from cldm.benchmark.training import TrainingBench
from cldm.options import BenchmarkOptions
from common.devices import pick_device
from common.trust import trust
from ldm.models.choices import COMPILED


def measure(options: BenchmarkOptions, keep: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """All numbers of one configuration; those of the peer only with the peer.

    Args:
        options: which model, and what of it.
        keep: called with the numbers so far after each part of the work: a later one may take too long or too much.

    Raises:
        InputError: a configuration, size or device that cannot be.
    """
    trust(options.trust)
    device = torch.device(pick_device(options.device))
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as a synthesis has it
    bench = Bench(options, device)
    result: dict[str, Any] = {
        "config": str(options.config),
        "size": list(options.size),
        "batch_size": options.batch_size,
        "precision": options.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "create_model_seconds": bench.created_in,
        "steps_per_image": options.steps,
        "matmul_flops_per_second": matmul_rate(device, bench.dtype),
    }
    reset_peak_memory(device)
    result["sample_seconds_per_step"] = seconds(bench.latents, device, 1) / options.steps
    result["images_per_second"] = options.batch_size / seconds(bench.images, device, 1)
    result["peaks_gib"] = peaks = {"synthesis": peak_memory(device)}  # on a CPU, of the process so far, with the peer
    result |= _steps(bench, result["images_per_second"])
    result["share_of_matmul_rate"] = (
        result["flops_per_step"] / result["seconds_per_step"] / result["matmul_flops_per_second"]
    )
    if options.presets:
        keep(result)
        result["preset_images_per_second"] = bench.presets()
    keep(result)
    if not options.no_training:
        reset_peak_memory(device)
        during = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(before)  # which a training leaves as it is
        training = TrainingBench(bench)
        took = training.seconds()
        result["training_samples_per_second"] = options.batch_size / took["whole"]
        result["p_losses_seconds"] = took["p_losses"]
        peaks["training"] = peak_memory(device)  # of a training: the ablations hold two optimizers
        keep(result)
        given = {"latents and texts given": took["p_losses"] / took["whole"]}
        result["training_ablations"] = given | training.ablations()
        training.end()
        torch.set_float32_matmul_precision(during)
    if options.compile is not None:
        bench.to(True)
        kinds = options.compile or COMPILED[1 : None if device.type == "cuda" else -1]
        result["compiled"] = {}
        for kind in kinds:
            keep(result)
            result["compiled"][kind] = bench.compiled(kind)
    torch.set_float32_matmul_precision(before)
    result["peak_memory_gib"] = max(peaks.values())
    return result


def _steps(bench: Bench, images_per_second: float) -> dict[str, Any]:
    """A guided step with all savings, with each of them off, and the peer's; which leaves the memory with this."""
    options, device = bench.options, bench.device
    ablated = ablations(bench)
    works = dict(ablated)
    peer = None
    if not options.no_peer:
        peer = ControlNetPeer(bench.model, bench.prompts, bench.x, bench.hint, bench.dtype, device)
        works["peer"] = peer.step()
        works["peer, hints once"] = peer.step(reuse_hints=True)
    times, flops = in_turn(works, device, options.repeats), count_flops(works["all savings"])
    step = times["all savings"]
    ratios = {name: times[name] / step for name in list(ablated)[1:]}
    ratios["not channels-last"] = bench.contiguous(bench.step, options.repeats)
    result: dict[str, Any] = {"seconds_per_step": step, "flops_per_step": flops, "ablations": ratios}
    if peer is not None:
        result["peer"] = _beside(peer, times, flops)
        if peer.decodes:
            rate = options.batch_size / seconds(partial(peer.images, options.steps), device, 1)
            result["peer"] |= {"images_per_second": rate, "images_ratio": images_per_second / rate}
    return result


def _beside(peer: ControlNetPeer, times: dict[str, float], flops: int) -> dict[str, Any]:
    """The peer's step, as it is and with its hints encoded once, beside ours."""
    step = times["all savings"]
    peer_flops, once_flops = count_flops(peer.step()), count_flops(peer.step(reuse_hints=True))
    return {
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


def table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [
        f"{result['config']}, {result['size']} px, batch {result['batch_size']}, {result['precision']}, "
        f"{result['device']}, torch {result['torch']}",
        f"  create_model              {result['create_model_seconds']:.2f} s",
        f"  seconds a guided step     {result['seconds_per_step']:.4f}   ({result['flops_per_step'] / 1e9:.1f} GFLOP, "
        f"{result['share_of_matmul_rate']:.0%} of the measured matrix-product rate)",
        f"  the same within sample    {result['sample_seconds_per_step']:.4f}",
        f"  images a second           {result['images_per_second']:.4f}   ({result['steps_per_image']} steps)",
    ]
    for name, rate in result.get("preset_images_per_second", {}).items():
        lines.append(f"  --preset {name:<17} {rate:.4f} images a second")
    if "training_samples_per_second" in result:
        lines.append(f"  training samples a second {result['training_samples_per_second']:.3f}")
        lines.append(f"  a step by p_losses        {result['p_losses_seconds']:.4f} s, backward and optimizer included")
        for name, ratio in result["training_ablations"].items():
            lines.append(f"  training, {name:<24} {ratio:.2f} x the time")
    told = ", ".join(f"{what} {peak:.2f} GiB" for what, peak in result["peaks_gib"].items())
    lines.append(f"  peak memory               {told}")
    for name, ratio in result["ablations"].items():
        lines.append(f"  {name:<34} {ratio:.2f} x the time")
    for kind, compiled in result.get("compiled", {}).items():
        lines.append(
            f"  compiled, {kind}: {compiled['start_seconds']:.1f} s until the first step; uncompiled "
            f"{compiled['time_ratio']:.2f} x the time"
        )
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

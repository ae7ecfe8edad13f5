r"""Measures speed, in one run with a peer and with each saving switched off: numbers as ratios.

  python -m scripts.benchmark --config configs/model/tisynth_v15.yaml --size 512 --precision bf16 --out bench.json

Weights are random. The peer is diffusers' StableDiffusionControlNetPipeline with two ControlNets of the same geometry,
at the same size, steps, precision and guidance.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cldm.build import create_model
from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from common.command import add_trust, parser, run
from common.converters import batch_size, integer, pixels
from common.devices import pick_device
from common.errors import InputError
from common.files import atomic_path, check_writable
from common.pictures import to_uint8
from common.trust import trust
from ldm.models.guidance import ClassifierFreeGuidance, SplitGuidance
from ldm.models.sampling import sample
from ldm.models.schedule import make_scheduler
from scripts.peer import ControlNetPeer

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
SCALE = 9.0


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that a clock read afterwards counts its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 1) -> float:
    """Median time of ``work`` in seconds."""
    times = []
    for i in range(warmup + repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_turn(works: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median times of several works, run in turn (A B C A B C ...), so that a drifting machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(repeats + 1):
        for name, work in works.items():
            times[name].append(seconds(work, device, 1, warmup=1 if i == 0 else 0))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured rate of a large matrix product in FLOP/s: what this machine can do at this precision."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ b, device, 10, warmup=3)


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of ``work``'s matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Bench:
    """A model with random weights, and the works to be timed.

    Args:
        args: the command line.
        device: where.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        self.args, self.device, self.dtype = args, device, DTYPES[args.precision]
        self.model: ControlLDM = create_model(args.config, classes=None)
        self.to(True)
        height, width = args.size if len(args.size) == 2 else args.size * 2
        if height % self.model.multiple or width % self.model.multiple:
            raise InputError(f"--size {height} {width}: must be multiples of {self.model.multiple}")
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(device, self.dtype)

        branch = self.model.control_model
        self.hint = random(args.batch_size, next(branch.input_hint_block.parameters()).shape[1], height, width)
        self.image = random(args.batch_size, 3, height, width) * 2 - 1
        factor = self.model.factor
        self.x = torch.randn(
            args.batch_size, self.model.channels, height // factor, width // factor, generator=generator
        ).to(device, self.dtype)
        self.prompts = ["a satellite image of building land road water"] * args.batch_size

    def to(self, channels_last: bool) -> None:
        """Moves the model; channels-last or contiguous."""
        form = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(self.device, self.dtype).to(memory_format=form)

    def conditions(self) -> tuple[Conditions, Conditions]:
        """With and without the text."""
        cond = self.model.conditions({"hint": self.hint, "ssl": self.image, "txt": self.prompts})
        return cond, self.model.without_text(cond)

    @torch.no_grad()
    def step(self, reuse: bool = True, split: bool = False) -> Callable[[], Tensor]:
        """One guided denoising step, solver included, in the middle of a sampling run."""
        cond, uncond = (replace(part, remember=reuse) for part in self.conditions())
        make = SplitGuidance if split else ClassifierFreeGuidance
        guidance = make(self.model, cond, uncond, SCALE)
        scheduler = make_scheduler("ddim", self.model.betas)
        scheduler.set_timesteps(50, device=self.device)
        t = scheduler.timesteps[25]
        guidance(self.x, t.expand(len(self.x)))  # what is remembered is there at all steps but the first

        @torch.no_grad()
        def work() -> Tensor:
            return scheduler.step(guidance(self.x, t.expand(len(self.x))), t, self.x).prev_sample

        return work

    @torch.no_grad()
    def images(self) -> None:
        """A batch of images from text and pixels to files."""
        getattr(self.model.cond_stage_model, "_cache", {}).clear()
        latents = sample(self.model, *self.conditions(), self.x, self.args.steps, guidance_scale=SCALE)
        pictures = to_uint8(self.model.decode_first_stage(latents.to(self.dtype)))
        with tempfile.TemporaryDirectory() as folder:
            for i, picture in enumerate(pictures):
                Image.fromarray(picture).save(Path(folder) / f"{i}.jpg", quality=95)

    def training(self) -> float:
        """Training samples a second: forward, backward and optimizer, at the run's precision by autocast."""
        model = self.model.float()
        configured: Any = model.train().configure_optimizers()
        optimizer = configured["optimizer"]
        batch: dict[str, Any] = {"jpg": self.image.float(), "hint": self.hint.float(), "ssl": self.image.float()}
        batch |= {"txt": self.prompts, "seed": list(range(len(self.prompts)))}

        def work() -> None:
            optimizer.zero_grad()
            half = self.dtype != torch.float32
            with torch.autocast(self.device.type, self.dtype) if half else contextlib.nullcontext():
                loss = model.batch_losses(batch).mean()
            loss.backward()
            optimizer.step()

        took = seconds(work, self.device, max(2, self.args.repeats // 2))
        self.model.eval()
        return len(self.prompts) / took


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by matrix products and a softmax, not by a fused kernel."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def ablations(bench: Bench) -> dict[str, Callable[[], Any]]:
    """The step with all savings, and with each of them off."""
    works: dict[str, Callable[[], Any]] = {
        "all savings": bench.step(),
        "text and hints anew each step": bench.step(reuse=False),
        "one text after the other": bench.step(split=True),
    }
    fused = works["all savings"]

    def plain() -> None:
        with plain_attention():
            fused()

    works["attention not fused"] = plain
    return works


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one configuration."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats(device)
    bench = Bench(args, device)
    rate = matmul_rate(device, bench.dtype)
    flops = count_flops(bench.step())
    ablated = ablations(bench)
    works = dict(ablated)
    peer = None
    if args.peer:
        peer = ControlNetPeer(bench.model, bench.prompts, bench.x, bench.hint, bench.dtype, device)
        works["peer"] = peer.step()
        works["peer, hints once"] = peer.step(reuse_hints=True)
    times = in_turn(works, device, args.repeats)
    step = times["all savings"]
    result: dict[str, Any] = {
        "config": str(args.config),
        "size": args.size,
        "batch_size": args.batch_size,
        "precision": args.precision,
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
    pair = in_turn({"contiguous": contiguous, "channels last": bench.step()}, device, args.repeats)
    result["ablations"]["not channels-last"] = pair["contiguous"] / pair["channels last"]
    result["images_per_second"] = args.batch_size / seconds(bench.images, device, 1)
    result["steps_per_image"] = args.steps
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
            took = seconds(lambda: peer.images(args.steps), device, 1)
            result["peer"]["images_per_second"] = args.batch_size / took
            result["peer"]["images_ratio"] = result["images_per_second"] / result["peer"]["images_per_second"]
    if args.training:
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


def main() -> None:
    """Parses, measures, prints and writes."""
    options = parser(__doc__ or "")
    add = options.add_argument
    add("--config", type=Path, required=True, metavar="YAML", help="model settings")
    add("--size", type=pixels, nargs="+", default=[512], metavar="PX", help="side, or height and width")
    add("--batch-size", type=batch_size, default=1, help="images at once")
    add("--precision", choices=DTYPES, default="32", help="of weights and activations")
    add("--steps", type=integer(1, 500), default=50, help="denoising steps of an image")
    add("--repeats", type=integer(1), default=5, help="timed runs of each work; the median counts")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--no-peer", dest="peer", action="store_false", help="leave the peer out")
    add("--no-training", dest="training", action="store_false", help="leave training out")
    add("--out", type=Path, metavar="JSON", help="file for the numbers")
    add_trust(options)
    args = options.parse_args()
    trust(args.trust)
    logging.basicConfig(level=logging.WARNING)
    args.device = pick_device(args.device)
    if args.out:
        check_writable(args.out.parent, "--out")
    result = measure(args)
    print(table(result))
    if args.out:
        with atomic_path(args.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)

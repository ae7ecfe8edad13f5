"""The works that are timed: a guided step, images from text and pixels to files."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cldm.benchmark.timing import in_turn, seconds
from cldm.build import create_model
from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.options import BenchmarkOptions
from cldm.synthesis.guiding import guidance_of, sparing
from cldm.synthesis.options import SamplingOptions
from cldm.synthesis.saving_options import PRESETS
from common.errors import InputError
from common.pictures import to_uint8
from ldm.compiling import compiled
from ldm.models.guidance import ClassifierFreeGuidance, SplitGuidance
from ldm.models.sampling import sample
from ldm.models.schedule import make_scheduler

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
SCALE = 9.0  # of the guidance


class Bench:
    """A model with random weights, and the works to be timed.

    Args:
        options: which model, and of what size images and batches are.
        device: where.
    """

    def __init__(self, options: BenchmarkOptions, device: torch.device) -> None:
        torch.manual_seed(0)
        self.options, self.device, self.dtype = options, device, DTYPES[options.precision]
        start = time.perf_counter()
        self.model: ControlLDM = create_model(options.config, classes=None)
        self.created_in = time.perf_counter() - start
        self.model.to(self.dtype)
        self.to(True)
        height, width = options.size if len(options.size) == 2 else options.size * 2
        if height % self.model.multiple or width % self.model.multiple:
            raise InputError(f"‹size› {height} {width}: must be multiples of {self.model.multiple}")
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(device, self.dtype)

        self.hint = random(options.batch_size, self.model.control_model.hint_channels, height, width)
        self.image = random(options.batch_size, self.model.image_bands, height, width) * 2 - 1
        factor = self.model.factor
        self.x = torch.randn(
            options.batch_size, self.model.channels, height // factor, width // factor, generator=generator
        ).to(device, self.dtype)
        self.prompts = ["a satellite image of building land road water"] * options.batch_size

    def to(self, channels_last: bool) -> None:
        """Moves the model; channels-last or contiguous."""
        form = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(self.device).to(memory_format=form)

    def conditions(self) -> tuple[Conditions, Conditions]:
        """With and without the text."""
        cond = self.model.conditions(self.batch())
        return cond, self.model.without_text(cond)

    def batch(self) -> dict[str, Any]:
        """The fields of a data set's items, in 32 bit."""
        model, image = self.model, self.image.float()
        batch = {model.first_stage_key: image, model.ssl_control_key: image, model.control_key: self.hint.float()}
        return {**batch, model.cond_stage_key: self.prompts, "seed": list(range(len(self.prompts)))}

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

    def contiguous(self, work: Callable[[], Callable[[], Any]], repeats: int) -> float:
        """The time of a work, made anew each time, with contiguous weights; as a multiple of channels-last ones."""
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeats):
            for channels_last, taken in times.items():
                self.to(channels_last)
                taken.append(seconds(work(), self.device, 1))
        return statistics.median(times[False]) / statistics.median(times[True])

    @torch.no_grad()
    def latents(self) -> Tensor:
        """Latents of a batch by ``sample`` as a program calls it: guided, by DDIM."""
        return sample(self.model, *self.conditions(), self.x, self.options.steps, guidance_scale=SCALE)

    @torch.no_grad()
    def images(self) -> None:
        """A batch of images from text and pixels to files."""
        getattr(self.model.cond_stage_model, "_cache", {}).clear()
        self._write(self.latents())

    @torch.no_grad()
    def preset_images(self, name: str) -> None:
        """A batch of images by a preset of the synthesis, with its own number of steps."""
        options = SamplingOptions.of_preset(name, scale=SCALE)
        getattr(self.model.cond_stage_model, "_cache", {}).clear()
        part: Any = sparing(self.model, options)
        how: dict[str, Any] = {"guidance": guidance_of(self.model, options), "guidance_scale": SCALE}
        self._write(sample(part, *self.conditions(), self.x, options.steps, options.sampler, **how))

    def presets(self) -> dict[str, float]:
        """Images a second by each preset."""
        works: dict[str, Callable[[], Any]] = {name: partial(self.preset_images, name) for name in PRESETS}
        return {name: len(self.prompts) / took for name, took in in_turn(works, self.device, 1).items()}

    def _write(self, latents: Tensor) -> None:
        pictures = to_uint8(self.model.decode_first_stage(latents.to(self.dtype)), self.model.seen_bands)
        with tempfile.TemporaryDirectory() as folder:
            for i, picture in enumerate(pictures):
                Image.fromarray(picture).save(Path(folder) / f"{i}.jpg", quality=95)

    def compiled(self, kind: str) -> dict[str, float]:
        """Networks compiled in one of the ways of ``ldm.compiling``.

        Returns:
            seconds until the first step is done (hints and texts, which are encoded before, included), a step's
            afterwards, and how many times as long the same takes uncompiled.
        """
        torch._dynamo.reset()
        networks: list[Any] = compiled(self.model.networks, kind)
        calls = [network._compiled_call_impl for network in networks]
        begin = time.perf_counter()
        step = self.step()
        start = time.perf_counter() - begin + seconds(step, self.device, 1, warmup=0)

        def work(on: bool) -> None:
            for network, call in zip(networks, calls, strict=True):
                network._compiled_call_impl = call if on else None
            step()

        took = in_turn({"off": lambda: work(False), "on": lambda: work(True)}, self.device, self.options.repeats)
        for network in networks:
            network._compiled_call_impl = None
        return {"start_seconds": start, "step_seconds": took["on"], "time_ratio": took["off"] / took["on"]}


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

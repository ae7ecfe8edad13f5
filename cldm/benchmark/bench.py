"""The works that are timed: a guided step, images from text and pixels to files, a training step."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cldm.benchmark.timing import seconds
from cldm.build import create_model
from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.options import BenchmarkOptions
from common.errors import InputError
from common.pictures import to_uint8
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
        self.model: ControlLDM = create_model(options.config, classes=None)
        self.to(True)
        height, width = options.size if len(options.size) == 2 else options.size * 2
        if height % self.model.multiple or width % self.model.multiple:
            raise InputError(f"‹size› {height} {width}: must be multiples of {self.model.multiple}")
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(device, self.dtype)

        branch = self.model.control_model
        self.hint = random(options.batch_size, next(branch.input_hint_block.parameters()).shape[1], height, width)
        self.image = random(options.batch_size, 3, height, width) * 2 - 1
        factor = self.model.factor
        self.x = torch.randn(
            options.batch_size, self.model.channels, height // factor, width // factor, generator=generator
        ).to(device, self.dtype)
        self.prompts = ["a satellite image of building land road water"] * options.batch_size

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
        latents = sample(self.model, *self.conditions(), self.x, self.options.steps, guidance_scale=SCALE)
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

        took = seconds(work, self.device, max(2, self.options.repeats // 2))
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

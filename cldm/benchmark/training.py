"""A training step, timed: as it is, by ``p_losses`` alone, and with each of its savings off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cldm.benchmark.bench import Bench
from cldm.benchmark.timing import in_turn
from cldm.control_ldm import ControlLDM
from ldm.modules.attention import BasicTransformerBlock
from ldm.training.optimizers import make_optimizer


@contextlib.contextmanager
def encoder_with_gradients(model: ControlLDM) -> Iterator[None]:
    """The U-Net's frozen encoder takes part in the backward pass."""
    frozen = [p for p in model.model.diffusion_model.input_blocks.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None


@contextlib.contextmanager
def recomputed(model: ControlLDM) -> Iterator[None]:
    """Transformer blocks compute their activations anew in the backward pass, for less memory."""
    blocks: list[Any] = [m for m in model.modules() if isinstance(m, BasicTransformerBlock)]
    before = [block.use_checkpoint for block in blocks]
    for block in blocks:
        block.use_checkpoint = True
    try:
        yield
    finally:
        for block, checkpointed in zip(blocks, before, strict=True):
            block.use_checkpoint = checkpointed


SCOPES = {"encoder within autograd": encoder_with_gradients, "use_checkpoint": recomputed}


class TrainingBench:
    """A bench's model in 32 bit, for training steps with autocast at the run's precision.

    Args:
        bench: whose model, images and texts.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.device, self.model = bench, bench.device, bench.model
        self.model.float().train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.repeats = max(2, bench.options.repeats // 2)
        configured: Any = self.model.configure_optimizers()
        self.optimizer: torch.optim.Optimizer = configured["optimizer"]
        half = bench.dtype == torch.float16
        if half:  # as 16-mixed has it, which scales losses, and takes no fused optimizer
            self.optimizer = make_optimizer("adamw", self.trained, {"lr": 0.0})
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)

    def seconds(self) -> dict[str, float]:
        """A step as a training takes it (``whole``), which encodes images and texts; and by ``p_losses`` alone, of
        latents and conditions that are given, as from ``--cache-latents``. Both go backward and take the optimizer's
        step.
        """
        model, bench = self.model, self.bench
        cond = model.conditions(bench.batch())
        x_start, noise = model.image_latent(bench.image.float()), bench.x.float()
        t = torch.full((len(noise),), len(model.betas) // 2, device=self.device)

        def by_p_losses() -> Tensor:
            return model.p_losses(x_start, replace(cond, remember=False), t, noise)

        works = {"whole": self._whole(self.optimizer), "p_losses": self._stepped(by_p_losses, self.optimizer)}
        return in_turn(works, self.device, self.repeats)

    def ablations(self) -> dict[str, float]:
        """A whole step's time, changed as the names say, as a multiple of that of one as it is; each pair in turn."""
        whole = self._whole(self.optimizer)

        def within(scope: Callable[[ControlLDM], contextlib.AbstractContextManager[None]]) -> Callable[[], None]:
            def work() -> None:
                with scope(self.model):
                    whole()

            return work

        def anew() -> Callable[[], None]:  # a fused kernel on a GPU demands averages of the weights' strides
            return self._whole(make_optimizer("adamw_fused", self.trained, {"lr": 0.0}))

        ratios = {name: self._ratio(whole, within(scope)) for name, scope in SCOPES.items()}
        self.optimizer.state.clear()  # on a GPU, room for the next two
        fused, plain = (make_optimizer(kind, self.trained, {"lr": 0.0}) for kind in ("adamw_fused", "adamw"))
        ratios["optimizer not fused"] = self._ratio(self._whole(fused), self._whole(plain))
        del fused, plain
        ratios["not channels-last"] = self.bench.contiguous(anew, self.repeats)
        return ratios

    def end(self) -> None:
        """Leaves the bench as it was."""
        self.optimizer.zero_grad()
        self.bench.to(True)
        self.model.eval().to(self.bench.dtype)

    def _ratio(self, whole: Callable[[], None], changed: Callable[[], None]) -> float:
        took = in_turn({"whole": whole, "changed": changed}, self.device, self.repeats)
        return took["changed"] / took["whole"]

    def _whole(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        return self._stepped(lambda: self.model.batch_losses(self.bench.batch()), optimizer)

    def _stepped(self, losses: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        half = self.bench.dtype != torch.float32

        def work() -> None:
            optimizer.zero_grad()
            # without a cache of 16-bit weights, as Lightning has it
            how: Any = {"dtype": self.bench.dtype, "cache_enabled": False} if half else {"enabled": False}
            with torch.autocast(self.device.type, **how):
                loss = losses().mean()
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
            self.scaler.update()

        return work

"""Training of a discrete VAE with DALL-E's structure on the maskiges of masks.

Tokens are learned by vector quantization (van den Oord et al., "Neural Discrete Representation Learning", 2017): for a
code c_k, -|z - c_k|^2 is linear in z up to |z|^2, so nearest codes are DALL-E's argmax over token logits.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from common.schema import one_line
from common.stamps import changed
from gss.dvae import DVAE, map_pixels, unmap_pixels
from gss.maskige import IGNORE, Maskige
from gss.weights import read_checkpoint

Read = Callable[[Path], np.ndarray]  # class ids of a mask file


class Quantizer(nn.Module):
    """Codes between encoder and decoder, moved to the running mean of what they stand for.

    Args:
        dvae: the model whose last encoder layer and first decoder layer the codes will become.
        decay: of the running means.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, dvae: DVAE, decay: float = 0.95) -> None:
        super().__init__()
        state = dvae.state_dict()
        width, size = state["encoder.blocks.output.conv.w"].shape[1], state["decoder.blocks.input.w"].shape[0]
        self.projection, self.decay = nn.Linear(width, size), decay
        self.register_buffer("codes", torch.zeros(dvae.vocab_size, size))
        self.register_buffer("counts", torch.zeros(dvae.vocab_size))
        self.register_buffer("sums", torch.zeros(dvae.vocab_size, size))

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code (P,) of latents (P, D)."""
        return (2 * z @ self.codes.T - (self.codes**2).sum(1)).argmax(1)

    @torch.no_grad()
    def start(self, z: Tensor, rng: np.random.Generator, rounds: int = 8) -> None:
        """K-means on latents (P, D)."""
        self.codes.copy_(z[rng.integers(0, len(z), len(self.codes))])
        for _ in range(rounds):
            self.sums.zero_()
            self._gather(z, 1.0)
            self._move(z, rng, self.counts < 0.5)
        self.counts.fill_(1)
        self.sums.copy_(self.codes)

    @torch.no_grad()
    def update(self, z: Tensor, rng: np.random.Generator, revive: bool) -> None:
        """Moves the codes towards the latents (P, D) of a batch; unused ones start again at random latents."""
        self.sums.mul_(self.decay)
        self._gather(z, 1 - self.decay)
        self._move(z, rng, (self.counts < 0.01) & revive)

    def _gather(self, z: Tensor, weight: float) -> None:
        index = self.nearest(z)
        used = torch.bincount(index, minlength=len(self.codes)).float()
        self.counts.mul_(1 - weight).add_(used, alpha=weight)
        self.sums.index_add_(0, index, z, alpha=weight)

    def _move(self, z: Tensor, rng: np.random.Generator, unused: Tensor) -> None:
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-6)[:, None])
        fresh = z[torch.from_numpy(rng.integers(0, len(z), int(unused.sum()))).to(z.device)]
        self.codes[unused], self.sums[unused], self.counts[unused] = fresh, 0.3 * fresh, 0.3

    @torch.no_grad()
    def write_to(self, dvae: DVAE) -> None:
        """Makes the codes the dVAE's own layers: logits_k = 2 c_k z - |c_k|^2, decoder input = c_k."""
        state = dvae.state_dict()
        weight, bias = self.projection.weight, self.projection.bias
        state["encoder.blocks.output.conv.w"].copy_((2 * self.codes @ weight)[:, :, None, None])
        state["encoder.blocks.output.conv.b"].copy_(2 * self.codes @ bias - (self.codes**2).sum(1))
        state["decoder.blocks.input.w"].copy_(self.codes.T[:, :, None, None])
        state["decoder.blocks.input.b"].zero_()


class Crops:
    """Random crops of masks that show more than one class, flipped and transposed; a function of seed and step."""

    def __init__(self, paths: list[Path], read: Read, size: int, batch_size: int, seed: int) -> None:
        self.paths, self.read, self.size, self.batch_size, self.seed = paths, read, size, batch_size, seed

    def __call__(self, step: int) -> Tensor:
        """Labels (B, size, size), int64."""
        rng = np.random.default_rng([self.seed, step])
        return torch.stack([self._crop(rng) for _ in range(self.batch_size)])

    def _crop(self, rng: np.random.Generator) -> Tensor:
        for _ in range(20):  # then a crop of one class will do
            mask = self.read(self.paths[rng.integers(len(self.paths))])
            y, x = (rng.integers(0, side - self.size + 1) for side in mask.shape)
            crop = mask[y : y + self.size, x : x + self.size]
            if (crop != crop[0, 0]).any():
                break
        crop = crop[:: rng.choice((-1, 1))]
        crop = crop.T if rng.random() < 0.5 else crop
        return torch.from_numpy(crop.astype(np.int64))


def check_memory(args: argparse.Namespace, num_classes: int) -> None:
    """Refuses sizes that cannot fit into this machine, before anything is made; the system would end the process.

    Args:
        args: the command line of scripts/train_dvae.py.
        num_classes: of the palette.

    Raises:
        InputError: names the options; what is counted is less than what a training needs.
    """
    with torch.device("meta"):
        shared = {"n_hid": args.n_hid, "n_blk_per_group": args.n_blocks, "vocab_size": args.vocab_size}
        weights = sum(p.numel() for p in DVAE(encoder=shared, decoder={"n_init": args.n_init, **shared}).parameters())
    pixels = args.batch_size * (args.crop_size * args.scale) ** 2
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for options, needed in (
        (f"--n-hid {args.n_hid}, --n-blocks {args.n_blocks}, --vocab-size {args.vocab_size}", 16 * weights),
        (
            f"--batch-size {args.batch_size}, --crop-size {args.crop_size}, --scale {args.scale}",
            4 * pixels * (4 * args.n_hid + 2 * num_classes),
        ),
    ):
        if needed > there:
            raise InputError(f"{options}: needs more than {needed:.1e} bytes of memory; this machine has {there:.1e}")


class Trainer:
    """The dVAE, its codes and their optimization.

    Args:
        args: the command line of scripts/train_dvae.py, with ``settings``: what must be the same when a run goes on.
        maskige: the palette.
    """

    def __init__(self, args: argparse.Namespace, maskige: Maskige) -> None:
        self.args, self.maskige = args, maskige
        torch.manual_seed(args.seed)
        shared = {"n_hid": args.n_hid, "n_blk_per_group": args.n_blocks, "vocab_size": args.vocab_size}
        self.dvae = DVAE(encoder=shared, decoder={"n_init": args.n_init, **shared}, frozen=False).to(args.device)
        self.codes = Quantizer(self.dvae).to(args.device)
        learned = [*self.dvae.parameters(), *self.codes.parameters()]
        self.optimizer = torch.optim.Adam(learned, lr=args.learning_rate, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1
        )

    def images(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Enlarged labels (B, H, W) and their maskiges (B, 3, H, W), 0..255, on the device."""
        labels = labels.to(self.args.device)
        labels = labels.repeat_interleave(self.args.scale, 1).repeat_interleave(self.args.scale, 2)
        return labels, self.maskige.encode(labels)

    def latents(self, colors: Tensor) -> Tensor:
        """Encoder features (B, h, w, D) in front of the codes."""
        blocks = self.dvae.encoder.blocks
        x = F.relu(nn.Sequential(*list(blocks)[:-1])(map_pixels(colors)))
        return self.codes.projection(x.movedim(1, -1))

    def step(self, step: int, crops: Crops) -> float:
        """One step of optimization; its loss.

        Raises:
            InputError: the loss is no number.
        """
        args = self.args
        rng = np.random.default_rng([args.seed, step, 1])
        if step == args.warmup:
            with torch.no_grad():
                z = torch.cat([self.latents(self.images(crops(step + i))[1]).flatten(0, 2) for i in range(12)])
            self.codes.start(z, rng)
        labels, colors = self.images(crops(step))
        z = self.latents(colors)  # (B, h, w, D)
        commitment = z.new_zeros(())
        if step >= args.warmup:
            flat = z.flatten(0, 2)
            quantized = self.codes.codes[self.codes.nearest(flat)].view_as(z)
            commitment = F.mse_loss(z, quantized)
            z = z + (quantized - z).detach()  # straight-through
            if step < 0.9 * args.steps:
                self.codes.update(flat.detach(), rng, revive=step < 0.7 * args.steps)
        output = nn.Sequential(*list(self.dvae.decoder.blocks)[1:])(z.movedim(-1, 1))
        decoded = unmap_pixels(output)
        # what decoding asks for: the true class's color is the nearest; and, for the rest, the right color
        palette = self.maskige.palette[:-1].to(decoded) / 255
        distances = torch.stack([((decoded - c.view(1, 3, 1, 1)) ** 2).sum(1) for c in palette], dim=1)
        logits = distances * (-0.5 * (255 / args.color_std) ** 2)
        nearest = F.cross_entropy(logits, labels.where(labels < len(palette), IGNORE), ignore_index=IGNORE)
        loss = nearest + F.mse_loss(decoded, colors / 255) + 0.25 * commitment
        if not torch.isfinite(loss):
            raise InputError(
                f"step {step}: the loss is {loss.item()}; take a smaller --learning-rate (it is {args.learning_rate:g})"
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def check_finite(self, step: int) -> None:
        """Refuses to keep what a training that diverged has made.

        Raises:
            InputError: weights or codes are no numbers any more.
        """
        for value in (*self.dvae.state_dict().values(), *self.codes.state_dict().values()):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise InputError(
                    f"step {step}: weights are no numbers any more; take a smaller --learning-rate "
                    f"(it is {self.args.learning_rate:g})"
                )

    def state(self, step: int) -> dict[str, Any]:
        """Everything that the next step depends on; see ``check_finite``."""
        self.check_finite(step)
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        return {"step": step, "settings": self.args.settings, **parts}

    def restore(self, path: Path) -> int:
        """Takes over a saved state; the number of the next step.

        Raises:
            InputError: it is damaged, no state, or of a run with other settings.
        """
        remedy = f"remove {path}, and training starts anew"
        try:
            saved = read_checkpoint(path)
        except InputError as error:
            raise InputError(f"{error}; {remedy}") from error
        settings, step = saved.get("settings"), saved.get("step")
        if not isinstance(settings, dict):
            raise InputError(f"{path}: no state of a training of this kind; {remedy}")
        if other := changed(settings, self.args.settings):
            raise InputError(
                f"--out {self.args.out}: {path} is of a run with other settings ({', '.join(other)}); "
                f"{remedy}, or write elsewhere"
            )
        if type(step) is not int or not 0 < step <= self.args.steps:
            raise InputError(f"{path}: step {one_line(step, 40)} of {self.args.steps}; {remedy}")
        expected = {name: getattr(self, name).state_dict() for name in _PARTS}
        learned = enumerate([*self.dvae.named_parameters(), *self.codes.named_parameters()])
        expected["optimizer"]["state"] = {
            i: {"step": torch.tensor(0.0), "exp_avg": weight, "exp_avg_sq": weight}
            for i, (part, weight) in learned
            if not part.startswith(_FROM_CODES)
        }
        for name in _PARTS:
            if fault := _difference(name, saved.get(name), expected[name]):
                raise InputError(f"{path}: {fault}; {remedy}")
        if saved["schedule"]["last_epoch"] != step:
            raise InputError(f"{path}: its learning rate is of another step; {remedy}")
        for name in _PARTS:
            getattr(self, name).load_state_dict(saved[name])
        return step


_PARTS = ("dvae", "codes", "optimizer", "schedule")
_FROM_CODES = ("encoder.blocks.output.", "decoder.blocks.input.")  # layers that the codes become: not optimized


def _difference(name: str, value: Any, like: Any) -> str | None:
    """What makes a saved value unusable in place of another, or None: kind, fields, shape, or numbers that are none."""
    if isinstance(like, Tensor):
        if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
            return f"{name} is not of shape {tuple(like.shape)} and type {like.dtype}"
        return None if not value.is_floating_point() or torch.isfinite(value).all() else f"{name} holds no numbers"
    if isinstance(like, dict):
        if not isinstance(value, dict) or set(value) != set(like):
            return f"{name} has other fields"
        return next(filter(None, (_difference(f"{name}.{key}", value[key], like[key]) for key in like)), None)
    if isinstance(like, (list, tuple)):
        if not isinstance(value, type(like)) or len(value) != len(like):
            return f"{name} has another length"
        faults = (_difference(f"{name}.{i}", *pair) for i, pair in enumerate(zip(value, like, strict=True)))
        return next(filter(None, faults), None)
    if isinstance(like, (int, float)) and not isinstance(like, bool):
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if fine else f"{name} is no number"
    return None if type(value) is type(like) else f"{name} is no {type(like).__name__}"

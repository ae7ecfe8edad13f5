"""Trains a discrete VAE on the maskiges of a mask folder, small enough for a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_path, check_writable
from common.pairing import MASK_SUFFIXES, list_files
from common.schema import one_line
from common.weights import refuse_not_finite
from gss.dvae import DVAE, save_dvae
from gss.maskige import IGNORE, Maskige, load_palette, palette_labels
from gss.roundtrip import class_iou, confusion, round_trip
from gss.weights import read_checkpoint
from scripts import cli
from scripts.cli import integer, number
from scripts.pairs import pick_device

Read = Callable[[Path], np.ndarray]  # class ids of a mask file

DESCRIPTION = """Trains a discrete VAE with DALL-E's structure on the maskiges of masks, for users without DALL-E's
weights and for palettes it has never seen.

  python -m scripts.train_dvae --masks data/mbrsc/label_train --palette mbrsc --out work_dirs/dvae_mbrsc.safetensors \\
      --test-masks data/mbrsc/label_test

Tokens are learnt by vector quantisation (van den Oord et al., "Neural Discrete Representation Learning", 2017): for a
code c_k, -|z - c_k|^2 is linear in z up to |z|^2, so nearest codes are DALL-E's argmax over token logits. An
interrupted run goes on where it was when the command is given again."""


class Quantiser(nn.Module):
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


def find_masks(option: str, folders: list[str], read: Read, min_size: int) -> list[Path]:
    """All masks of some folders, looked at one by one.

    Raises:
        InputError: a mask is smaller than a crop; no masks, one that is no index mask, or has ids that are no classes;
            or no mask shows a class.
    """
    found = (list_files(Path(folder), MASK_SUFFIXES, option) for folder in folders)
    paths, seen = sorted(path for files in found for path in files.values()), False
    for path in tqdm(paths, desc="checking masks", leave=False):
        mask = read(path)
        seen = seen or bool((mask != IGNORE).any())
        if min(mask.shape) < min_size:
            raise InputError(f"{path}: {mask.shape[0]} x {mask.shape[1]} pixels, smaller than --crop-size {min_size}")
    if not seen:
        raise InputError(f"{option} {folders[0]}: no mask shows a class, all pixels are to be ignored")
    return paths


class Trainer:
    """The dVAE, its codes and their optimisation.

    Args:
        args: the command line.
        maskige: the palette.
    """

    def __init__(self, args: argparse.Namespace, maskige: Maskige) -> None:
        self.args, self.maskige = args, maskige
        torch.manual_seed(args.seed)
        shared = {"n_hid": args.n_hid, "n_blk_per_group": args.n_blocks, "vocab_size": args.vocab_size}
        self.dvae = DVAE(encoder=shared, decoder={"n_init": args.n_init, **shared}, frozen=False).to(args.device)
        self.codes = Quantiser(self.dvae).to(args.device)
        learnt = [*self.dvae.parameters(), *self.codes.parameters()]
        self.optimizer = torch.optim.Adam(learnt, lr=args.learning_rate, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1
        )

    def images(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Enlarged labels (B, H, W) and their maskiges (B, 3, H, W), 0..1, on the device."""
        labels = labels.to(self.args.device)
        labels = labels.repeat_interleave(self.args.scale, 1).repeat_interleave(self.args.scale, 2)
        return labels, self.maskige.encode(labels).float() / 255

    def latents(self, image: Tensor) -> Tensor:
        """Encoder features (B, h, w, D) in front of the codes."""
        blocks = self.dvae.encoder.blocks
        x = F.relu(nn.Sequential(*list(blocks)[:-1])(0.8 * image + 0.1))
        return self.codes.projection(x.movedim(1, -1))

    def step(self, step: int, crops: Crops) -> float:
        """One step of optimisation; its loss."""
        args = self.args
        rng = np.random.default_rng([args.seed, step, 1])
        if step == args.warmup:
            with torch.no_grad():
                z = torch.cat([self.latents(self.images(crops(step + i))[1]).flatten(0, 2) for i in range(12)])
            self.codes.start(z, rng)
        labels, image = self.images(crops(step))
        z = self.latents(image)  # (B, h, w, D)
        commitment = z.new_zeros(())
        if step >= args.warmup:
            flat = z.flatten(0, 2)
            quantised = self.codes.codes[self.codes.nearest(flat)].view_as(z)
            commitment = F.mse_loss(z, quantised)
            z = z + (quantised - z).detach()  # straight-through
            if step < 0.9 * args.steps:
                self.codes.update(flat.detach(), rng, revive=step < 0.7 * args.steps)
        output = nn.Sequential(*list(self.dvae.decoder.blocks)[1:])(z.movedim(-1, 1))
        decoded = (torch.sigmoid(output[:, :3]) - 0.1) / 0.8
        # what decoding asks for: the true class's colour is the nearest; and, for the rest, the right colour
        palette = self.maskige.palette[:-1].to(decoded) / 255
        distances = torch.stack([((decoded - c.view(1, 3, 1, 1)) ** 2).sum(1) for c in palette], dim=1)
        logits = distances * (-0.5 * (255 / args.colour_std) ** 2)
        nearest = F.cross_entropy(logits, labels.where(labels < len(palette), IGNORE), ignore_index=IGNORE)
        loss = nearest + F.mse_loss(decoded, image) + 0.25 * commitment
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def state(self, step: int) -> dict[str, Any]:
        """Everything that the next step depends on."""
        parts = {name: getattr(self, name).state_dict() for name in ("dvae", "codes", "optimizer", "schedule")}
        return {"step": step, "settings": settings(self.args), **parts}

    def restore(self, state: dict[str, Any]) -> int:
        """Takes over a saved state; the number of the next step."""
        try:
            for name in ("dvae", "codes", "optimizer", "schedule"):
                getattr(self, name).load_state_dict(state[name])
            step = int(state["step"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise InputError(f"holds no state of a training ({one_line(error)})") from error
        refuse_not_finite({**self.dvae.state_dict(), **self.codes.state_dict()}, "its dVAE", "the training failed")
        if not 0 < step <= self.args.steps:
            raise InputError(f"stopped at step {step}, not in 1..{self.args.steps}")
        return step


def settings(args: argparse.Namespace) -> dict[str, str]:
    """What must be the same when a run goes on."""
    return {key: str(value) for key, value in vars(args).items() if key not in ("device", "save_every", "test_masks")}


def reconstruction(dvae: DVAE, maskige: Maskige, paths: list[Path], read: Read, scale: int, device: str) -> Tensor:
    """IoU of each class (N,) after the round trip of all masks."""

    def pairs() -> Any:
        for path in tqdm(paths, desc="round trip", leave=False):
            mask = torch.from_numpy(read(path).astype(np.int64))[None].to(device)
            yield mask, round_trip(mask, maskige, dvae, scale)[0]

    return class_iou(confusion(pairs(), maskige.num_classes))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(DESCRIPTION)
    parser.add_argument("--masks", nargs="+", required=True, help="folders of index masks (PNG or TIFF) to train on")
    parser.add_argument("--test-masks", nargs="+", default=None, help="folders to test on (default: --masks)")
    parser.add_argument("--palette", required=True, help="palette: a JSON file, or a name in gss/palettes")
    parser.add_argument("--out", required=True, help="weights to write (.safetensors or .pth)")
    parser.add_argument("--steps", type=integer(2), default=1000, help="training steps")
    parser.add_argument("--warmup", type=integer(1), default=100, help="steps before the latents are quantised")
    parser.add_argument("--batch-size", type=integer(1), default=8, help="crops a step")
    parser.add_argument("--crop-size", type=integer(1), default=48, help="side of the crops, in pixels of the masks")
    parser.add_argument(
        "--scale", type=integer(1), default=2, help="enlargement of masks in front of the dVAE; the heads use 2"
    )
    parser.add_argument("--n-hid", type=integer(1), default=16, help="width of the first group (DALL-E: 256)")
    parser.add_argument("--n-blocks", type=integer(1), default=1, help="blocks a group (DALL-E: 2)")
    parser.add_argument("--n-init", type=integer(2), default=16, help="width of a code (DALL-E: 128)")
    parser.add_argument("--vocab-size", type=integer(2), default=512, help="number of tokens (DALL-E: 8192)")
    parser.add_argument("--learning-rate", type=number(0), default=3e-3, help="highest learning rate")
    parser.add_argument("--colour-std", type=number(1e-6), default=40.0, help="softness of the nearest colour, of 255")
    parser.add_argument("--save-every", type=integer(1), default=200, help="steps between saved states")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of weights, crops and codes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    args.device = pick_device(args.device)
    if args.crop_size * args.scale % 8:
        raise InputError(f"--crop-size {args.crop_size}: times --scale {args.scale} must be a multiple of 8")
    if not 0 < args.warmup < args.steps:
        raise InputError(f"--warmup {args.warmup}: must be in 1..{args.steps - 1}, below --steps")
    if Path(args.out).suffix not in (".safetensors", ".pth"):
        raise InputError(f"--out {args.out}: name a .safetensors or .pth file")
    maskige = Maskige(load_palette(args.palette))
    read = lru_cache(maxsize=512)(palette_labels(args.palette, maskige.num_classes).read)
    paths = find_masks("--masks", args.masks, read, args.crop_size)
    tests = find_masks("--test-masks", args.test_masks, read, 1) if args.test_masks else paths
    out, saved = Path(args.out), Path(f"{args.out}.state")
    check_writable(out.parent, "--out")

    trainer, first = Trainer(args, maskige), 0
    if saved.is_file():
        state = read_checkpoint(saved)
        if state.get("settings") != settings(args):
            raise InputError(f"--out {out}: {saved} is of a run with other settings; delete it, or write elsewhere")
        try:
            first = trainer.restore(state)
        except InputError as error:
            raise InputError(f"--out {out}: {saved} {error}; remove it, the training then starts anew") from error
    crops = Crops(paths, read, args.crop_size, args.batch_size, args.seed)
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, desc="training")
    for step in bar:
        bar.set_postfix(loss=f"{trainer.step(step, crops):.4f}", refresh=False)
        if (step + 1) % args.save_every == 0:
            with atomic_path(saved) as temporary:
                torch.save(trainer.state(step + 1), temporary)

    trainer.codes.write_to(trainer.dvae)
    with atomic_path(out) as temporary:
        save_dvae(trainer.dvae, temporary)
    saved.unlink(missing_ok=True)
    iou = reconstruction(trainer.dvae, maskige, tests, read, args.scale, args.device)
    for name, value in enumerate(iou.tolist()):
        print(f"  class {name:3}  IoU {value:.4f}")
    print(f"round trip of {len(tests)} masks: mIoU {iou.nanmean():.4f}  ({out})")


if __name__ == "__main__":
    cli.run(main)

"""Training of a dVAE with DALL-E's structure on the maskiges of masks: latent posterior learning (GSS, section 3.2).

The paper takes DALL-E's weights as they are. This is for users without them, and for colors that DALL-E has never seen:
q_phi and p_theta are trained to give back the maskige X(c), and with it the mask c. ``train_dvae`` does the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from common.converters import integer, number
from common.devices import pick_device
from common.errors import InputError
from common.files import atomic_path, check_writable, only_writer_of, room_for
from common.images import IGNORE
from common.log_choices import LOGGERS
from common.loggers import check_logger, make_logger
from common.options import Options, option
from common.pairing import MASK_SUFFIXES, list_files
from common.processes import signals_held
from gss.dvae import DVAE, SCALE, map_pixels, save_dvae, unmap_pixels
from gss.dvae_state import check_finite, restore, save_state, settings
from gss.maskige import Maskige
from gss.palette import load_palette, palette_labels
from gss.quantizer import Quantizer
from gss.roundtrip import class_iou, confusion, round_trip

_LOGGED_EVERY = 10  # steps
ReadMask = Callable[[Path], NDArray[Any]]  # class ids (H, W) of a mask file


@dataclass(frozen=True, kw_only=True)
class DvaeTrainingOptions(Options):
    """What a dVAE is trained on, its size, and how long.

    Raises:
        InputError: crops that are no whole number of tokens, or a warm-up beyond the training's end.
    """

    masks: tuple[Path, ...] = option(metavar="DIR", help="folders of index masks (PNG or TIFF) to train on")
    test_masks: tuple[Path, ...] | None = option(
        None, metavar="DIR", help="folders to test on (default: those of training)"
    )
    palette: str = option(
        help="palette: a JSON file, or a name in gss/palettes; as in class tables, :ids behind it says that masks hold "
        "0..N-1, :from1 1..N and 0 for no data"
    )
    out: Path = option(metavar="FILE", help="weights to write (.safetensors or .pth)")
    steps: int = option(1000, convert=integer(2, 10**9), help="training steps")
    warmup: int = option(100, convert=integer(1, 10**9), help="steps before the latents are quantized")
    batch_size: int = option(8, convert=integer(1, 4096), help="crops a step")
    crop_size: int = option(48, convert=integer(1, 8192), help="side of the crops, in pixels of the masks")
    scale: int = option(2, convert=integer(1, 64), help="enlargement of masks in front of the dVAE; the heads use 2")
    n_hid: int = option(16, convert=integer(1, 4096), help="width of the first group (DALL-E: 256)")
    n_blocks: int = option(1, convert=integer(1, 64), help="blocks a group (DALL-E: 2)")
    n_init: int = option(16, convert=integer(2, 4096), help="width of a code (DALL-E: 128)")
    vocab_size: int = option(512, convert=integer(2, 2**20), help="number of tokens (DALL-E: 8192)")
    learning_rate: float = option(3e-3, convert=number(0), help="highest learning rate")
    color_std: float = option(40.0, convert=number(1e-6, 1e6), help="softness of the nearest color, of 255")
    save_every: int = option(200, convert=integer(1), help="steps between saved states")
    seed: int = option(0, convert=integer(0, 2**63 - 1), help="seed of weights, crops and codes")
    logger: str | None = option(
        None,
        choices=LOGGERS,
        help="log of losses and rates, in <out>.log; wandb's is offline (docs/python.md)",
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_size * self.scale % SCALE:
            raise InputError(f"‹crop_size› {self.crop_size}: times ‹scale› {self.scale} must be a multiple of {SCALE}")
        if self.warmup >= self.steps:
            raise InputError(f"‹warmup› {self.warmup}: must be in 1..{self.steps - 1}, below ‹steps›")

    def new_dvae(self) -> DVAE:
        """A dVAE of this size, to be trained."""
        size = {"n_hid": self.n_hid, "n_blk_per_group": self.n_blocks, "vocab_size": self.vocab_size}
        return DVAE(encoder=size, decoder={"n_init": self.n_init, **size}, frozen=False)


@dataclass(frozen=True, eq=False)
class TrainedDvae:
    """What a training has made.

    Attributes:
        dvae: as written to ``out``.
        class_iou: (N,) float64, of the test masks after the round trip; nan for classes that no mask shows.
        tested: number of test masks.
    """

    dvae: DVAE
    class_iou: Tensor
    tested: int


def train_dvae(options: DvaeTrainingOptions) -> TrainedDvae:
    """Trains, or goes on from the state beside ``out``, writes the weights, and tests the round trip.

    SIGTERM and Ctrl-C save the state at the next step; the same call goes on there, to the weights of an unbroken run.

    Raises:
        InputError: masks, palette or state cannot be used; the training diverged; too little memory or disk.
    """
    if options.out.suffix not in (".safetensors", ".pth") or options.out.is_dir():
        raise InputError(f"‹out› {options.out}: name a .safetensors or .pth file")
    if options.logger is not None:
        check_logger(options.logger, "‹logger›")
    device = pick_device(options.device)
    maskige = Maskige(load_palette(options.palette))
    check_memory(options, maskige.num_classes)
    read = lru_cache(maxsize=512)(palette_labels(options.palette, maskige.num_classes).read)
    paths = find_masks("masks", options.masks, read, options.crop_size)
    tests = find_masks("test_masks", options.test_masks, read, 1) if options.test_masks else paths
    same = settings(options, maskige.palette.numpy(), paths)
    check_writable(options.out.parent, "‹out›")
    with only_writer_of(options.out, "‹out›"), room_for("‹out›", options.out.parent):
        trainer = Trainer(options, maskige, device)
        _train(trainer, Crops(paths, read, options.crop_size, options.batch_size, options.seed), same)
    iou = reconstruction(trainer.dvae, maskige, tests, read, options.scale, device)
    return TrainedDvae(trainer.dvae, iou, len(tests))


def _train(trainer: Trainer, crops: Crops, same: dict[str, str]) -> None:
    """From the saved state, or from the start, to the weights; stops early, its state saved, on a signal."""
    options = trainer.options
    saved = Path(f"{options.out}.state")
    first = restore(trainer, saved, same) if saved.exists() else 0
    log = None
    if options.logger is not None:
        log = make_logger(options.logger, Path(f"{options.out}.log"), "‹logger›", options.out.stem)
    bar = tqdm(range(first, options.steps), initial=first, total=options.steps, desc="training")
    with signals_held() as stop:
        for step in bar:
            loss = trainer.step(step, crops)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if log and step % _LOGGED_EVERY == 0:
                log.log_metrics({"train/loss": loss, "learning_rate": float(trainer.schedule.get_last_lr()[0])}, step)
                log.save()
            if (step + 1) % options.save_every == 0 or stop:
                save_state(trainer, saved, step + 1, same)
            if stop:
                break  # the signal acts at the block's end
        if log:
            log.finalize("success")
        if stop:
            return
    check_finite(trainer, options.steps)
    trainer.codes.write_to(trainer.dvae)
    with atomic_path(options.out) as temporary:
        save_dvae(trainer.dvae, temporary)
    saved.unlink(missing_ok=True)


def find_masks(field: str, folders: tuple[Path, ...], read: ReadMask, min_size: int) -> list[Path]:
    """All masks of some folders, looked at one by one.

    Args:
        field: the option that names the folders, for messages.
        folders: of masks.
        read: class ids of a mask file.
        min_size: the least height and width, in pixels.

    Raises:
        InputError: a mask is smaller than that; no masks, one that is no index mask, or has ids that are no classes; or
            no mask shows a class.
    """
    listed = (list_files(folder, MASK_SUFFIXES, f"‹{field}›") for folder in folders)
    paths, any_class = sorted(path for files in listed for path in files.values()), False
    for path in tqdm(paths, desc="checking masks", leave=False):
        mask = read(path)
        any_class = any_class or bool((mask != IGNORE).any())
        if min(mask.shape) < min_size:
            raise InputError(f"{path}: {mask.shape[0]} x {mask.shape[1]} pixels, smaller than ‹crop_size› {min_size}")
    if not any_class:
        raise InputError(f"‹{field}› {folders[0]}: no mask shows a class, all pixels are to be ignored")
    return paths


def reconstruction(dvae: DVAE, maskige: Maskige, paths: list[Path], read: ReadMask, scale: int, device: str) -> Tensor:
    """IoU of each class (N,) after the round trip of all masks."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for path in tqdm(paths, desc="round trip", leave=False):
            mask = torch.from_numpy(read(path).astype(np.int64))[None].to(device)
            yield mask, round_trip(mask, maskige, dvae, scale)[0]

    return class_iou(confusion(pairs(), maskige.num_classes))


def check_memory(options: DvaeTrainingOptions, num_classes: int) -> None:
    """Refuses sizes that cannot fit into this machine, before anything is made; the system would end the process.

    Raises:
        InputError: names the options; what is counted is less than what a training needs.
    """
    with torch.device("meta"):
        weights = sum(p.numel() for p in options.new_dvae().parameters())
    pixels = options.batch_size * (options.crop_size * options.scale) ** 2
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for fields, needed in (
        (("n_hid", "n_blocks", "vocab_size"), 16 * weights),
        (("batch_size", "crop_size", "scale"), 4 * pixels * (4 * options.n_hid + 2 * num_classes)),
    ):
        if needed > there:
            told = ", ".join(f"‹{field}› {getattr(options, field)}" for field in fields)
            raise InputError(f"{told}: needs more than {needed:.1e} bytes of memory; this machine has {there:.1e}")


class Crops:
    """Random crops of masks that show more than one class, flipped and transposed; a function of seed and step."""

    def __init__(self, paths: list[Path], read: ReadMask, size: int, batch_size: int, seed: int) -> None:
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


class Trainer:
    """The dVAE, its codes and their optimization.

    Args:
        options: sizes, learning rate, seed.
        maskige: the palette.
        device: where to train.
    """

    def __init__(self, options: DvaeTrainingOptions, maskige: Maskige, device: str) -> None:
        self.options, self.maskige, self.device = options, maskige, device
        torch.manual_seed(options.seed)
        self.dvae = options.new_dvae().to(device)
        self.codes = Quantizer(self.dvae).to(device)
        learned = [*self.dvae.parameters(), *self.codes.parameters()]
        self.optimizer = torch.optim.Adam(learned, lr=options.learning_rate, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, options.learning_rate, total_steps=options.steps, pct_start=0.1
        )

    def images(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Enlarged labels (B, H, W) and their maskiges (B, 3, H, W), 0..255, on the device."""
        scale = self.options.scale
        labels = labels.to(self.device).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        return labels, self.maskige.encode(labels)

    def latents(self, colors: Tensor) -> Tensor:
        """Encoder features (B, h, w, D) in front of the codes."""
        blocks = self.dvae.encoder.blocks
        x = F.relu(nn.Sequential(*list(blocks)[:-1])(map_pixels(colors)))
        return self.codes.projection(x.movedim(1, -1))

    def quantize(self, z: Tensor, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The nearest codes of latents (B, h, w, D), which are moved towards them, and the commitment loss."""
        flat = z.flatten(0, 2)
        quantized = self.codes.codes[self.codes.nearest(flat)].view_as(z)
        commitment = F.mse_loss(z, quantized)
        if step < 0.9 * self.options.steps:
            self.codes.update(flat.detach(), rng, revive=step < 0.7 * self.options.steps)
        return z + (quantized - z).detach(), commitment  # straight-through: the encoder gets the decoder's gradient

    def reconstruction_loss(self, decoded: Tensor, colors: Tensor, labels: Tensor) -> Tensor:
        """How far a decoded picture, 0..1, is from its maskige X(c), and from giving the mask c by X^-1.

        The second is the cross-entropy of classes under a Gaussian around each class's color. Ignored pixels have their
        color to show, and no class.
        """
        palette = self.maskige.palette[:-1].to(decoded) / 255
        distances = torch.stack([((decoded - c.view(1, 3, 1, 1)) ** 2).sum(1) for c in palette], dim=1)  # (B, N, H, W)
        logits = distances * (-0.5 * (255 / self.options.color_std) ** 2)
        known = labels < len(palette)  # a crop may have none
        nearest = F.cross_entropy(logits, labels.where(known, IGNORE), ignore_index=IGNORE, reduction="sum")
        nearest = nearest / known.sum().clamp(min=1)
        return nearest + F.mse_loss(decoded, colors / 255)

    def step(self, step: int, crops: Crops) -> float:
        """One step of optimization; its loss.

        Raises:
            InputError: the loss is no number.
        """
        options = self.options
        rng = np.random.default_rng([options.seed, step, 1])
        if step == options.warmup:
            with torch.no_grad():
                z = torch.cat([self.latents(self.images(crops(step + i))[1]).flatten(0, 2) for i in range(12)])
            self.codes.start(z, rng)
        labels, colors = self.images(crops(step))
        z = self.latents(colors)  # (B, h, w, D)
        commitment = z.new_zeros(())
        if step >= options.warmup:
            z, commitment = self.quantize(z, step, rng)
        decoded = unmap_pixels(nn.Sequential(*list(self.dvae.decoder.blocks)[1:])(z.movedim(-1, 1)))
        loss = self.reconstruction_loss(decoded, colors, labels) + 0.25 * commitment
        if not torch.isfinite(loss):
            rate = f"‹learning_rate› (it is {options.learning_rate:g})"
            raise InputError(f"step {step}: the loss is {loss.item()}; take a smaller {rate}")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

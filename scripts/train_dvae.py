"""Trains a discrete VAE on the maskiges of a mask folder, small enough for a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import command as cli
from common.converters import integer, number
from common.devices import pick_device
from common.errors import InputError
from common.files import atomic_path, check_writable, digest, only_writer_of, room_for
from common.pairing import MASK_SUFFIXES, list_files
from common.processes import signals_held
from gss.dvae import DVAE, save_dvae
from gss.dvae_training import Crops, Read, Trainer, check_memory
from gss.maskige import IGNORE, Maskige, load_palette, palette_labels
from gss.roundtrip import class_iou, confusion, round_trip

DESCRIPTION = """Trains a discrete VAE with DALL-E's structure on the maskiges of masks, for users without DALL-E's
weights and for palettes it has never seen.

  python -m scripts.train_dvae --masks data/mbrsc/label_train --palette mbrsc --out work_dirs/dvae_mbrsc.safetensors \\
      --test-masks data/mbrsc/label_test

Tokens are learned by vector quantization (van den Oord et al., "Neural Discrete Representation Learning", 2017). The
state is kept beside --out while training; SIGTERM and Ctrl-C save it at the next step, and the same command goes on
there, to the same weights as an unbroken run."""


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


def settings(args: argparse.Namespace, palette: np.ndarray, masks: list[Path]) -> dict[str, str]:
    """What must be the same when a run goes on: options, colors, and the contents of masks."""
    free = ("device", "save_every", "test_masks", "masks", "palette", "out")
    options = {key: str(value) for key, value in vars(args).items() if key not in free}
    return {**options, "palette": digest(palette.tolist()), "masks": digest([path.name for path in masks], *masks)}


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
    parser.add_argument(
        "--palette",
        required=True,
        help="palette: a JSON file, or a name in gss/palettes; as in "
        "class tables, :ids behind it says that masks hold 0..N-1, :from1 1..N and 0 for no data",
    )
    parser.add_argument("--out", required=True, help="weights to write (.safetensors or .pth)")
    parser.add_argument("--steps", type=integer(2, 10**9), default=1000, help="training steps")
    parser.add_argument("--warmup", type=integer(1, 10**9), default=100, help="steps before the latents are quantized")
    parser.add_argument("--batch-size", type=integer(1, 4096), default=8, help="crops a step")
    parser.add_argument(
        "--crop-size", type=integer(1, 8192), default=48, help="side of the crops, in pixels of the masks"
    )
    parser.add_argument(
        "--scale", type=integer(1, 64), default=2, help="enlargement of masks in front of the dVAE; the heads use 2"
    )
    parser.add_argument("--n-hid", type=integer(1, 4096), default=16, help="width of the first group (DALL-E: 256)")
    parser.add_argument("--n-blocks", type=integer(1, 64), default=1, help="blocks a group (DALL-E: 2)")
    parser.add_argument("--n-init", type=integer(2, 4096), default=16, help="width of a code (DALL-E: 128)")
    parser.add_argument("--vocab-size", type=integer(2, 2**20), default=512, help="number of tokens (DALL-E: 8192)")
    parser.add_argument("--learning-rate", type=number(0), default=3e-3, help="highest learning rate")
    parser.add_argument(
        "--color-std", type=number(1e-6, 1e6), default=40.0, help="softness of the nearest color, of 255"
    )
    parser.add_argument("--save-every", type=integer(1), default=200, help="steps between saved states")
    parser.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, help="seed of weights, crops and codes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def train(args: argparse.Namespace, trainer: Trainer, crops: Crops, out: Path) -> None:
    """Trains from the saved state, or from the start, to the end, and writes the weights.

    Raises:
        InputError: the state is not one to go on from; or the training diverged.
    """
    saved = Path(f"{args.out}.state")
    first = trainer.restore(saved) if saved.exists() else 0
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, desc="training")
    with signals_held() as stop:
        for step in bar:
            bar.set_postfix(loss=f"{trainer.step(step, crops):.4f}", refresh=False)
            if (step + 1) % args.save_every == 0 or stop:
                with atomic_path(saved) as temporary:
                    torch.save(trainer.state(step + 1), temporary)
            if stop:
                return  # the signal acts at the block's end
    trainer.check_finite(args.steps)
    trainer.codes.write_to(trainer.dvae)
    with atomic_path(out) as temporary:
        save_dvae(trainer.dvae, temporary)
    saved.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    args.device, out = pick_device(args.device), Path(args.out)
    if args.crop_size * args.scale % 8:
        raise InputError(f"--crop-size {args.crop_size}: times --scale {args.scale} must be a multiple of 8")
    if not 0 < args.warmup < args.steps:
        raise InputError(f"--warmup {args.warmup}: must be in 1..{args.steps - 1}, below --steps")
    if out.suffix not in (".safetensors", ".pth") or out.is_dir():
        raise InputError(f"--out {args.out}: name a .safetensors or .pth file")
    maskige = Maskige(load_palette(args.palette))
    check_memory(args, maskige.num_classes)
    read = lru_cache(maxsize=512)(palette_labels(args.palette, maskige.num_classes).read)
    paths = find_masks("--masks", args.masks, read, args.crop_size)
    tests = find_masks("--test-masks", args.test_masks, read, 1) if args.test_masks else paths
    args.settings = settings(args, maskige.palette.numpy(), paths)
    check_writable(out.parent, "--out")
    with only_writer_of(out, "--out"), room_for("--out", out.parent):
        trainer = Trainer(args, maskige)
        train(args, trainer, Crops(paths, read, args.crop_size, args.batch_size, args.seed), out)
    iou = reconstruction(trainer.dvae, maskige, tests, read, args.scale, args.device)
    for name, value in enumerate(iou.tolist()):
        print(f"  class {name:3}  IoU {value:.4f}")
    print(f"round trip of {len(tests)} masks: mIoU {iou.nanmean():.4f}  ({out})")


if __name__ == "__main__":
    cli.run(main)

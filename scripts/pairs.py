"""What filtering, evaluation and comparison share: checked pairs, devices, files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch

from common.errors import InputError
from common.images import Labels
from common.pairing import Pair, check_pairs, folder_pairs, listed

PAIRS = dict[str, list[Pair]]


def pick_device(name: str) -> str:
    """The device to compute on; ``auto`` and ``cuda`` take this process's own GPU."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if name not in ("auto", "cpu", "cuda") and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise InputError(f"--device {name}: write auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: no GPU here; use --device cpu")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: no such GPU here ({torch.cuda.device_count()} present)")
    return "cpu" if name == "auto" else name


def find_faults(pairs: Sequence[Pair], num_classes: int, title: str, threads: int | None = None,
                same_size: bool = False) -> list[str | None]:
    """What ``check_pairs`` finds wrong with each pair; None where it is fine."""
    quiet = int(os.environ.get("RANK", 0)) > 0
    return [check.fault for check in check_pairs(pairs, Labels(num_classes), title, threads, same_size, quiet)]


def find_pairs(args: argparse.Namespace, num_classes: int) -> tuple[PAIRS, list[str]]:
    """Real and synthesised pairs, each opened once, and what was left out with --skip-invalid."""
    pairs: PAIRS = {}
    skipped: list[str] = []
    for kind, images, masks, option in (
        ("real", args.real_img_path, args.real_label_path, "--real-label-path"),
        ("syn", args.syn_img_path, args.syn_mask_path, "--syn-mask-path"),
    ):
        options = (f"--{kind}-img-path", option)
        found, orphans = folder_pairs(images, masks, options, args.skip_invalid)
        faults = find_faults(found, num_classes, f"check {kind}", max(args.num_workers, 1), same_size=kind == "real")
        wrong = [fault for fault in faults if fault]
        if wrong and not args.skip_invalid:
            raise InputError(f"{listed(wrong)}; correct them, or leave them out with --skip-invalid")
        pairs[kind] = [pair for pair, fault in zip(found, faults, strict=True) if not fault]
        if not pairs[kind]:
            raise InputError(f"{options[0]} {images}: no valid image left; first: {wrong[0]}")
        skipped += orphans + wrong
    return pairs, skipped

"""Files of GSS weights made of others: a dVAE of DALL-E's pickles or of a checkpoint; GSS-FF with a way back joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from common.files import atomic_path, check_writable, only_writer_of, room_for
from common.options import Options, option
from gss.dvae import DVAE, dvae_entries, save_dvae
from gss.weights import read_checkpoint, read_pickled_module, read_state_dict

# entries of a GSS-FT-W head that are its learned X^-1
WAY_BACK = tuple(
    f"decode_head.{name}." for name in ("projection", "post_transformer_block", "cls_segmap", "post_swin_ln")
)
KEPT = ("meta", "optimizer")  # of the first checkpoint, by the published merge


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """A dVAE's weights: DALL-E's two files, or one checkpoint.

    Raises:
        InputError: neither, or both, or one of the two files.
    """

    encoder: Path | None = option(None, metavar="FILE", help="published encoder.pkl")
    decoder: Path | None = option(None, metavar="FILE", help="published decoder.pkl")
    checkpoint: Path | None = option(None, metavar="FILE", help="GSS checkpoint, or state dict of a dVAE")
    out: Path = option(metavar="FILE", help="file to write (.safetensors or .pth)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.checkpoint is None) == (self.encoder is None) or (self.encoder is None) != (self.decoder is None):
            raise InputError("give either ‹encoder› and ‹decoder›, or ‹checkpoint›")


def convert_dvae(options: ConvertOptions) -> int:
    """Writes a dVAE's weights under the names that they have in a GSS checkpoint; the number of tensors.

    Raises:
        InputError: a file cannot be read or written, would have to run code, or holds no dVAE.
    """
    check_writable(options.out.parent, "‹out›")
    if options.checkpoint is not None:
        state = dvae_entries(read_state_dict(options.checkpoint))
    else:
        parts = {"encoder": options.encoder, "decoder": options.decoder}
        state = {
            f"{part}.{key}": value
            for part, path in parts.items()
            if path is not None
            for key, value in read_pickled_module(path).items()
        }
    dvae = DVAE(state)  # checks names and shapes
    with atomic_path(options.out) as temporary:
        save_dvae(dvae, temporary)
    return len(dvae.state_dict())


@dataclass(frozen=True, kw_only=True)
class MergeOptions(Options):
    """Two checkpoints, and how they become one."""

    ff: Path = option(
        names=("--ff", "--model-path"), metavar="FILE", help="GSS-FF checkpoint: backbone, token branch and dVAE"
    )
    ftw: Path = option(names=("--ftw", "--post-model-path"), metavar="FILE", help="GSS-FT-W checkpoint: the way back")
    out: Path = option(names=("--out", "--target-path"), metavar="FILE", help="checkpoint to write (.pth)")
    backbone_type: str | None = option(
        None,
        choices=("swin", "hrnet"),
        help="the published merge for this backbone (default: a checked GSS-FT-W model)",
    )


def merge_checkpoints(options: MergeOptions) -> dict[str, int]:
    """Writes the merged checkpoint; how many entries it has of each of the two, by field.

    Raises:
        InputError: a file cannot be read or written, or the two do not go together.
    """
    out = options.out
    if out.is_dir():
        raise InputError(f"‹out› {out}: is a folder; name a file")
    check_writable(out.parent, "‹out›")
    ff, ftw = read_state_dict(options.ff), read_state_dict(options.ftw)
    if options.backbone_type is None:
        merged = _with_way_back(ff, ftw, options)
        content: dict[str, Any] = {"meta": {"ff": str(options.ff), "ftw": str(options.ftw)}}
    else:
        merged = _with_what_lacks(ff, ftw, options)
        first = read_checkpoint(options.ff)
        content = {key: first[key] for key in KEPT if key in first}
    with only_writer_of(out, "‹out›"), room_for("‹out›", out.parent), atomic_path(out) as temporary:
        torch.save({"state_dict": merged, **content}, temporary)
    taken = sum(merged[key] is ftw.get(key) for key in merged)
    return {"ff": len(merged) - taken, "ftw": taken}


def _with_way_back(ff: dict[str, Tensor], ftw: dict[str, Tensor], options: MergeOptions) -> dict[str, Tensor]:
    """A GSS-FT-W model's entries: the way back of ``ftw``, all else of ``ff``."""
    if not any(key.startswith(WAY_BACK) for key in ftw):
        raise InputError(f"‹ftw› {options.ftw}: has no way back ({', '.join(WAY_BACK)}); is it a GSS-FF checkpoint?")
    merged = {}
    for key, value in ftw.items():
        source = ftw if key.startswith(WAY_BACK) else ff
        if key not in source:
            raise InputError(f"‹ff› {options.ff}: no entry {key}, which ‹ftw› has; the two are of different models")
        if source[key].shape != value.shape:
            shapes = f"{tuple(source[key].shape)} in ‹ff›, {tuple(value.shape)} in ‹ftw›"
            raise InputError(f"‹ff› {options.ff}: {key} is {shapes}; the two are of different models")
        merged[key] = source[key]
    return merged


def _with_what_lacks(ff: dict[str, Tensor], ftw: dict[str, Tensor], options: MergeOptions) -> dict[str, Tensor]:
    """The published merge: all of ``ff``, and what it lacks of ``ftw``."""
    lacking = {key: value for key, value in ftw.items() if key not in ff}
    if options.backbone_type == "hrnet":
        lacking = {key: value for key, value in lacking.items() if "decode_head" in key and "pixel" not in key}
    if not lacking:
        raise InputError(f"‹ftw› {options.ftw}: nothing in it that {options.ff} lacks; are the two exchanged?")
    return {**ff, **lacking}

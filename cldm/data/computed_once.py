"""Folders of tensors that are computed once and kept on disk: a file each, written whole, and what they depend on."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_path, digest, flock, room_for, write_json
from common.schema import load_json, one_line, parse_json

ABOUT = "cache.json"  # what the folder's tensors are of
OPTION = "‹cache_latents›"


def weights_hash(module: nn.Module) -> str:
    """16 digits that stand for all numbers of a module: weights and tables."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    parts = [(name, digest(tensor.detach().cpu().float().numpy().tobytes().hex())) for name, tensor in tensors.items()]
    return digest(parts)[:16]


class ComputedOnce:
    """A folder of safetensors files whose names stand for what they are of, and ``cache.json``.

    Args:
        folder: made by ``fill``, if need be.
        kind: what it holds, in words: latents.
        about: all that they depend on beside what is in the files' names; ``cache.json`` holds it.

    Raises:
        InputError: the folder holds those of something else.
    """

    def __init__(self, folder: Path, kind: str, about: Mapping[str, Any]) -> None:
        self.folder, self.kind = folder, kind
        self.about: dict[str, Any] = parse_json(json.dumps(about))  # as the file gives it
        self._refuse_others()

    def _refuse_others(self) -> None:
        path = self.folder / ABOUT
        there = load_json(path, "name another folder") if path.exists() else self.about
        for key in self.about:
            then, now = there.get(key) if isinstance(there, dict) else None, self.about[key]
            if then != now:
                raise InputError(
                    f"{OPTION} {self.folder}: its {self.kind} have another {key} ({one_line(then, 60)}, now "
                    f"{one_line(now, 60)}); name another folder"
                )

    def fill(self, files: Sequence[Path], make: Callable[[int], Mapping[str, Tensor]], progress: bool = True) -> int:
        """Makes the files that are missing; one process at a time, the others wait and find them there.

        Args:
            files: all of them.
            make: position in ``files`` -> what that file is to hold.
            progress: show a bar.

        Returns:
            how many were made.

        Raises:
            InputError: what ``make`` raises, or the disk is full.
        """
        with room_for(OPTION, self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with flock(self.folder / ".lock", fcntl.LOCK_EX):
                self._refuse_others()
                write_json(self.about, self.folder / ABOUT)
                for left_over in self.folder.glob(".*.tmp.*"):  # of a process that was killed
                    left_over.unlink(missing_ok=True)
                missing = [i for i, file in enumerate(files) if not file.exists()]
                for i in tqdm(missing, desc=self.kind, unit="item", disable=not (progress and missing)):
                    tensors = {name: tensor.contiguous() for name, tensor in make(i).items()}
                    with atomic_path(files[i]) as path:
                        save_file(tensors, path)
        return len(missing)


def unreadable(path: Path, error: Exception) -> InputError:
    """Of a file that is there and cannot be read."""
    return InputError(f"{path}: cannot be read ({one_line(error)}); remove it, and start again")

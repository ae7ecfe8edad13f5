"""A training's latents, computed once and kept on disk: the first stage then takes no part in training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from cldm.data.computed_once import OPTION, ComputedOnce, unreadable
from cldm.data.manifest import Item
from cldm.data.pairs import PairedImages
from common.errors import InputError
from common.files import digest, file_hash
from common.schema import one_line

AT_ONCE = 4  # images that the first stage encodes together: in 32 bit, at 512 px, some GB


class CachedLatents(Dataset[dict[str, Any]]):
    """The items of a data set with posteriors of latents in place of images, which ``ControlLDM`` takes alike.

    In epoch e an item has flip, colors and reference of epoch e modulo ``variants``; what is hidden of it, time step
    and noise are those of epoch e. With as many variants as epochs the training is the one without a cache, but that
    latents are always computed in 32 bit.

    ``dataset[e, i]`` is an item of ``PairedImages``, but for ``jpg_posterior`` and ``ssl_posterior`` (2C, h, w) float32
    (C where the first stage has no spread) in place of ``jpg`` and ``ssl``.

    Args:
        images: the data set.
        folder: where its latents are; a file an item, named by a hash of its name and files. Made if need be.
        of_first_stage: stands for the first stage's weights.
        variants: number of variants an item.
        half: keep float16, half the space; float32 otherwise.

    Raises:
        InputError: the folder holds latents of something else.
    """

    def __init__(
        self, images: PairedImages, folder: Path, of_first_stage: str, variants: int = 4, half: bool = False
    ) -> None:
        self.images, self.folder, self.variants = images, folder, variants
        self.dtype = torch.float16 if half else torch.float32
        about = {"first_stage": of_first_stage, "variants": variants, "dtype": str(self.dtype), **images.pixel_settings}
        self.kept = ComputedOnce(folder, "latents", about)
        with ThreadPoolExecutor() as pool:
            self.files = list(pool.map(self._file, images.items))

    def _file(self, item: Item) -> Path:
        mask = None if item.mask is None else file_hash(item.mask)
        assert item.image is not None
        return self.folder / f"{digest(item.name, mask, file_hash(item.image))[:32]}.safetensors"

    def fill(self, encode: Callable[[Tensor], Tensor], progress: bool = True) -> int:
        """Makes the files that are missing; one process at a time, the others wait and find them there.

        Args:
            encode: images (B, 3, H, W) in [-1, 1] -> parameters of their posteriors (B, 2C or C, h, w).
            progress: show a bar.

        Returns:
            how many were made.

        Raises:
            InputError: an image cannot be read, or the disk is full.
        """
        return self.kept.fill(self.files, lambda position: self._make(position, encode), progress)

    def _make(self, position: int, encode: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        drawn = [self.images.pixels(epoch, position) for epoch in range(self.variants)]

        def encoded(images: list[Tensor]) -> Tensor:
            parts = [torch.stack(images[i : i + AT_ONCE]) for i in range(0, len(images), AT_ONCE)]
            return torch.cat([encode(part).to("cpu", self.dtype) for part in parts])

        latents = {"jpg": encoded([one.image for one in drawn]), "ssl": encoded([one.reference for one in drawn])}
        if not all(bool(torch.isfinite(latent).all()) for latent in latents.values()):
            name = self.images.items[position].name
            raise InputError(f"{OPTION} {self.folder}: a latent of {one_line(name, 80)} is no number in {self.dtype}")
        tensors = {"mask": torch.from_numpy(np.stack([one.mask for one in drawn])), **latents}
        if self.images.has_gaps:
            tensors["valid"] = torch.from_numpy(np.stack([one.valid for one in drawn]))
        return tensors

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """The item at ``index``, or at (epoch, ``index``)."""
        epoch, position = index if isinstance(index, tuple) else (0, index)
        variant, path = epoch % self.variants, self.files[position]
        try:
            with safe_open(path, "pt") as file:
                latents = {f"{key}_posterior": file.get_slice(key)[variant].float() for key in ("jpg", "ssl")}
                mask = file.get_slice("mask")[variant].numpy()
                if self.images.has_gaps:  # a file of before the list's first TIFF says nothing: pictures are whole
                    whole = torch.ones(mask.shape, dtype=torch.bool)
                    valid = file.get_slice("valid")[variant] if "valid" in file.keys() else whole  # noqa: SIM118
                    latents["valid"] = valid[None]
        except (OSError, SafetensorError) as error:
            raise unreadable(path, error) from error
        return {**self.images.described(epoch, position, mask), **latents}

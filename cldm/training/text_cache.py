"""A training's text embeddings, computed once and kept on disk: the text encoder then takes no part in training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cldm.data.computed_once import OPTION, ComputedOnce, unreadable, weights_hash
from common.errors import InputError
from common.files import digest
from common.schema import one_line
from ldm.modules.encoders import TextEncoder

# Parameters of an encoder on which no embedding depends, or (freeze) none that is kept.
_WITHOUT_EFFECT = ("cache_size", "device", "freeze")


def settings_of(encoder: TextEncoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """All that an encoder's embeddings depend on beside its weights: its class, and its parameters with defaults."""
    cls = type(encoder)
    defaults = {one.name: one.default for one in inspect.signature(cls).parameters.values()}
    settings = {name: value for name, value in {**defaults, **params}.items() if name not in _WITHOUT_EFFECT}
    return {"class": f"{cls.__module__}.{cls.__qualname__}", **settings}


class CachedTexts:
    """The embeddings of a training's prompts, a file each, named by a hash of the prompt.

    They are computed in 32 bit, whatever a training computes in, each by itself: the numbers that the encoder gives.
    The empty text is among them: items that hide their prompt and guided pictures have it.

    Args:
        encoder: the text encoder.
        params: that it was made with.
        prompts: in any order, repeated or not.
        folder: where they are; made if need be.
        half: keep float16, half the space; float32 otherwise.

    Raises:
        InputError: the folder holds embeddings of another encoder.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        params: Mapping[str, Any],
        prompts: Iterable[str],
        folder: Path,
        half: bool = False,
    ) -> None:
        self.encoder, self.prompts = encoder, sorted({"", *prompts})
        self.dtype = torch.float16 if half else torch.float32
        about = {"text_encoder": weights_hash(encoder), "settings": settings_of(encoder, params)}
        self.kept = ComputedOnce(folder, "texts", {**about, "dtype": str(self.dtype)})

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.kept.folder

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{digest(prompt)[:32]}.safetensors"

    @torch.inference_mode()
    def fill(self, progress: bool = True) -> int:
        """Makes the files that are missing, on the encoder's device; returns how many.

        Raises:
            InputError: the disk is full, or a number is beyond what is kept.
        """
        return self.kept.fill([self._file(prompt) for prompt in self.prompts], self._make, progress)

    def _make(self, position: int) -> dict[str, Tensor]:
        text = self.encoder.embedding(self.prompts[position]).to("cpu", self.dtype)
        if not bool(torch.isfinite(text).all()):
            prompt = one_line(self.prompts[position], 80)
            raise InputError(f"{OPTION} {self.folder}: the text of {prompt} is no number in {self.dtype}")
        return {"text": text}

    def read(self, prompt: str) -> Tensor | None:
        """The embedding (L, D) float32 of a prompt, on the CPU; None of one that is not among them."""
        path = self._file(prompt)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor("text").float()
        except (OSError, SafetensorError) as error:
            raise unreadable(path, error) from error

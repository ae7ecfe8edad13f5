"""How much of its prompts a model reads, and what to say of those that are longer."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from cldm.data.pairs import PairedImages
from common.errors import InputError
from ldm.models.diffusion import LatentDiffusion
from ldm.modules.encoders import LONG_PROMPTS, TextEncoder
from ldm.modules.tokenizer import Reading, cut_prompts


def read_long_prompts(model: LatentDiffusion) -> None:
    """From now on the model reads more windows of a prompt than its configuration says.

    Raises:
        InputError: its text encoder has no windows.
    """
    encoder = model.cond_stage_model
    if not isinstance(encoder, TextEncoder):
        raise InputError(f"‹long_prompts›: {type(encoder).__name__} has no windows; leave it out")
    encoder.max_windows = LONG_PROMPTS


def reading(model: LatentDiffusion, prompt: str) -> Reading:
    """What the model reads of a prompt."""
    encoder = model.cond_stage_model
    if not isinstance(encoder, TextEncoder):
        return Reading(0, prompt, "", 1)
    return encoder.tokenizer.reading(prompt, encoder.max_windows)


def cut_lines(model: LatentDiffusion, dataset: Dataset[Any], remedy: str) -> list[str]:
    """Lines about the prompts of a list that are longer than what the model reads; see ``cut_prompts``."""
    encoder = model.cond_stage_model
    if not (isinstance(encoder, TextEncoder) and isinstance(dataset, PairedImages)):
        return []
    prompts = [(f"{dataset.list_file} line {item.line}", item.prompt) for item in dataset.items]
    return cut_prompts(prompts, encoder.tokenizer, encoder.max_windows, remedy)

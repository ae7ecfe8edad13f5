"""CLIP's tokens: a text in one window of fixed length, as published, or in several.

CLIP's vocabulary ships inside ``open_clip_torch``; nothing is downloaded.
"""

from __future__ import annotations

import copy
import gzip
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

from common.errors import InputError
from common.schema import one_line

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
VOCAB_SIZE = 49408
SHOWN = 5  # cut prompts that are named one by one


@lru_cache(maxsize=1)
def _clip_bpe() -> CLIPTokenizer:
    """CLIP's byte-pair encoding (Radford et al. 2021) from the list of merges inside ``open_clip_torch``."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise InputError("CLIP's vocabulary ships inside open_clip_torch: pip install open_clip_torch")
    with gzip.open(Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    letters = sorted(ByteLevel.alphabet())  # one printable letter a byte, in CLIP's order
    count = VOCAB_SIZE - 2 * len(letters) - 2  # what the letters, the word-ending letters and two marks leave
    merges = [tuple(line.split()) for line in lines[1 : 1 + count]]  # line 0 is a header
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges), START, END]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)


@dataclass(frozen=True)
class Reading:
    """What an encoder reads of a text.

    Attributes:
        tokens: that the whole text has.
        read: the text as far as it is read.
        left_out: the rest; empty for a text that is read whole.
        windows: that are read, 1 or more.
    """

    tokens: int
    read: str
    left_out: str
    windows: int


class ClipTokenizer:
    """OpenAI's CLIP tokenizer, with a fixed length.

    Args:
        max_length: tokens a window, start and end token included; what does not fit is cut, the end token stays.
        pad_token: id that fills up short texts: 49407, the end token (ViT-L/14 as published), or 0 (open_clip).
    """

    def __init__(self, max_length: int = 77, pad_token: int = END_ID) -> None:
        self.max_length, self.pad_token = max_length, pad_token
        self.bpe = _clip_bpe()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids of one window a text, int64 (B, max_length)."""
        rows = [self.windows(text) for text in texts]
        return torch.cat(rows) if rows else torch.empty((0, self.max_length), dtype=torch.int64)

    def windows(self, text: str, most: int = 1) -> Tensor:
        """Token ids of a text in as many windows as it needs, at most ``most``; int64 (n, max_length).

        Each window has its own start and end token, so that an encoder made for one window reads each of them.
        """
        room = self.max_length - 2
        ids = self._encode(text)["input_ids"][: room * most]
        parts = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
        tokens = torch.full((len(parts), self.max_length), self.pad_token, dtype=torch.int64)
        for row, part in zip(tokens, parts, strict=True):
            row[: len(part) + 2] = torch.tensor([START_ID, *part, END_ID])
        return tokens

    def reading(self, text: str, most: int = 1) -> Reading:
        """What ``windows`` reads of a text, and what it leaves out."""
        text = repaired(text)
        encoded = self._encode(text, return_offsets_mapping=True)
        tokens, room = len(encoded["input_ids"]), self.max_length - 2
        windows = max(1, min(most, -(-tokens // room)))
        cut = encoded["offset_mapping"][room * windows][0] if tokens > room * windows else len(text)
        return Reading(tokens, text[:cut].rstrip() if cut < len(text) else text, text[cut:], windows)

    def save(self, folder: Path) -> None:
        """Writes it as transformers' ``CLIPTokenizer`` reads it, with this one's length and padding."""
        bpe = copy.deepcopy(self.bpe)
        bpe.pad_token, bpe.model_max_length = bpe.convert_ids_to_tokens(self.pad_token), self.max_length
        bpe.save_pretrained(folder)

    def _encode(self, text: str, **options: bool) -> Any:
        return self.bpe(repaired(text), add_special_tokens=False, verbose=False, **options)


def repaired(text: str) -> str:
    """A text as the published tokenizers read it: typographic quotes, ligatures, full-width letters made plain.

    OpenAI's, open_clip's and transformers 4's tokenizers do so by ftfy; that of transformers 5 does not any more.
    """
    if text.isascii() and "&" not in text:
        return text
    import ftfy  # loads tables that few prompts need

    return str(ftfy.fix_text(text))


def cut_prompts(prompts: Iterable[tuple[str, str]], tokenizer: ClipTokenizer, most: int, remedy: str) -> list[str]:
    """Says which prompts are longer than what is read of them: a line each for the first few, then their number.

    Args:
        prompts: (where it stands, prompt).
        tokenizer: of the text encoder.
        most: windows that are read.
        remedy: how longer prompts are read.
    """
    read = {}
    cut = []
    for where, prompt in prompts:
        if prompt not in read:
            read[prompt] = tokenizer.reading(prompt, most)
        if read[prompt].left_out:
            cut.append((where, read[prompt]))
    kept = (tokenizer.max_length - 2) * most
    lines = [
        f"{where}: the prompt's {one.tokens} tokens are cut to {kept}; left out: {one_line(one.left_out.strip(), 60)!r}"
        for where, one in cut[:SHOWN]
    ]
    if len(cut) > SHOWN:
        lines.append(f"{len(cut)} prompts of {len(read)} different ones are cut to {kept} tokens")
    if lines:
        lines[-1] += f"; {remedy}"
    return lines

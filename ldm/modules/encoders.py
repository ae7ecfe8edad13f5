"""Text encoders: CLIP ViT-L/14 (Stable Diffusion 1.x) and OpenCLIP ViT-H/14 (Stable Diffusion 2.x).

Nothing is downloaded: an encoder's shape comes from its arguments, its weights from the checkpoint.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from common.errors import InputError
from common.weights import read_tensors
from ldm.modules.tokenizer import END_ID, VOCAB_SIZE, ClipTokenizer

MOST_WINDOWS = 4  # of a configuration: a training batch's contexts are repeated to their common length, 12 windows here
LONG_PROMPTS = 16  # windows of inference's --long-prompts, whose batches hold prompts of one length


def as_long(contexts: Sequence[Tensor]) -> list[Tensor]:
    """Text embeddings (..., L_i, C) repeated along the tokens to their common length, the least common multiple.

    Attention to a context is a weighted mean of its tokens' values: to the same context repeated it is the same mean.
    Padding with anything else would change what a short text means by the company it is in.
    """
    length = math.lcm(*(context.shape[-2] for context in contexts))
    return [
        torch.cat([context] * (length // context.shape[-2]), dim=-2) if context.shape[-2] < length else context
        for context in contexts
    ]


class TextEncoder(nn.Module):
    """A text encoder that remembers the embedding of each distinct prompt; always in eval mode.

    Args:
        tokenizer: texts -> token ids.
        freeze: no parameter learns. With ``freeze=False``, nothing is remembered while gradients are on.
        cache_size: how many prompts are remembered, the least recently used is dropped first; 0 turns it off.
        max_windows: windows of ``max_length`` - 2 tokens that are read of a text, 1 to 4. Each is embedded by itself;
            their embeddings follow each other along L. 1 cuts the text, as published.

    Raises:
        InputError: another ``max_windows``.
    """

    def __init__(self, tokenizer: ClipTokenizer, freeze: bool, cache_size: int, max_windows: int = 1) -> None:
        super().__init__()
        if isinstance(max_windows, bool) or max_windows not in range(1, MOST_WINDOWS + 1):
            raise InputError(f"max_windows {max_windows}: must be a whole number, 1 to {MOST_WINDOWS}")
        self.max_windows = max_windows
        self.tokenizer, self.freeze_weights, self.cache_size = tokenizer, freeze, cache_size
        self.kept: Callable[[str], Tensor | None] | None = None  # embeddings that need not be computed, if it has them
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_under: tuple[object, ...] = ()
        self._place: Tensor | None = None  # of an encoder that rests: a number that goes where its model goes

    def freeze(self) -> None:
        """Stops all parameters from learning."""
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> TextEncoder:
        """Stays in eval mode whatever ``mode`` says: the published models condition on the encoder as it is."""
        return super().train(False)

    def rest(self) -> None:
        """Stays on the CPU from now on, wherever its model goes; what it gives is still where the model is."""
        self.to("cpu")
        self._place = torch.zeros(())

    def _apply(self, fn: Any, recurse: bool = True) -> TextEncoder:
        if self._place is None:
            return super()._apply(fn, recurse)
        self._place = fn(self._place)
        return self

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) -> embeddings (B, L, C)."""
        raise NotImplementedError

    def embedding(self, text: str) -> Tensor:
        """Computes the embedding (L, C) of a text, in one or more windows."""
        tokens = self.tokenizer.windows(text, self.max_windows)
        return self.embed(tokens.to(next(self.parameters()).device)).flatten(0, 1)

    def _found(self, text: str) -> Tensor:
        """The embedding (L, C) of a text: as it was kept, else computed."""
        kept = None if self.kept is None else self.kept(text)
        found = self.embedding(text) if kept is None else kept.to(next(self.parameters()))
        return found if self._place is None else found.to(self._place)

    def forward(self, texts: str | Sequence[str]) -> Tensor:
        """The same as ``encode``."""
        return self.encode(texts)

    def encode(self, texts: str | Sequence[str]) -> Tensor:
        """Embeds texts.

        Args:
            texts: B texts (one string is one text).

        Returns:
            (B, max_length, C) on the encoder's device; with ``max_windows``, (B, k * max_length, C): texts of fewer
            windows than others are repeated, see ``as_long``.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            return self.encode("")[:0]
        device = next(self.parameters()).device
        learning = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        if learning:
            windows = [self.tokenizer.windows(text, self.max_windows) for text in texts]
            parts = self.embed(torch.cat(windows).to(device)).split([len(tokens) for tokens in windows])
            return torch.stack(as_long([part.flatten(0, 1) for part in parts]))
        state = self._state(device)
        if state != self._cached_under:
            self._cache.clear()
            self._cached_under = state
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        found = {text: self._cache[text] for text in texts if text in self._cache}
        if new:
            with torch.no_grad():
                for text in new:
                    # one at a time: a remembered embedding must not depend, by rounding, on the batch that it came with
                    found[text] = self._found(text)
        for text in dict.fromkeys(texts):
            self._cache[text] = found[text]
            self._cache.move_to_end(text)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return torch.stack(as_long([found[text] for text in texts]))

    def _state(self, device: torch.device) -> tuple[object, ...]:
        """What remembered embeddings depend on: changes when weights are loaded, moved or cast, and under autocast."""
        kind = device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        # a tensor's version counts in-place writes; inference tensors keep none
        weights = (
            (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype)
            for weight in self.parameters()
        )
        place = None if self._place is None else (self._place.device, self._place.dtype)
        return (device, autocast, self.max_windows, place, *weights)


class FrozenCLIPEmbedder(TextEncoder):
    """CLIP's text transformer as Stable Diffusion 1.x uses it: the last hidden state, after the final layer norm.

    Args:
        version: a folder in Hugging Face layout, or a hub name, to take shape and weights from. None: the shape is
            that of the arguments below, the weights come with the checkpoint.
        device: accepted for published YAML files, unused: the encoder lives where its model does.
        max_length: tokens a text.
        freeze: no parameter learns.
        layer: "last"; "hidden": the state after block ``layer_idx``, not normed; "pooled": one vector a text (L = 1).
        layer_idx: for "hidden", 0 (embeddings) to ``num_layers``; negative values count from the end.
        hidden_size: C.
        num_layers: transformer blocks.
        num_heads: attention heads.
        intermediate_size: width of the feed-forward part.
        vocab_size: size of the vocabulary.
        hidden_act: "quick_gelu" (OpenAI's weights) or "gelu" (OpenCLIP's weights in Hugging Face layout, SD 2.x).
        pad_token: id that fills up short texts: 49407 (SD 1.x), or 0 (SD 2.x).
        cache_size: how many prompts' embeddings are remembered.
        max_windows: 1 cuts long texts, as published; see ``TextEncoder``.

    Raises:
        InputError: impossible arguments, or no text model under ``version``.
    """

    def __init__(
        self,
        version: str | None = None,
        device: str | None = None,
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        layer_idx: int | None = None,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        intermediate_size: int = 3072,
        vocab_size: int = VOCAB_SIZE,
        hidden_act: str = "quick_gelu",
        pad_token: int = END_ID,
        cache_size: int = 1024,
        max_windows: int = 1,
    ) -> None:
        if vocab_size < VOCAB_SIZE:
            raise InputError(f"vocab_size {vocab_size}: CLIP's vocabulary has {VOCAB_SIZE} tokens")
        if hidden_size % num_heads:
            raise InputError(f"hidden_size {hidden_size}: not a multiple of num_heads {num_heads}")
        super().__init__(ClipTokenizer(max_length, pad_token), freeze, cache_size, max_windows)
        config = CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=max_length,
            hidden_act=hidden_act,
        )
        text_model = CLIPTextModel(config) if version is None else _pretrained_clip(version)
        # published keys read transformer.text_model.*, transformers no longer has that level
        self.transformer = nn.ModuleDict({"text_model": text_model})
        layers: int = text_model.config.num_hidden_layers
        if layer not in ("last", "hidden", "pooled"):
            raise InputError(f"layer {layer!r}: must be last, hidden or pooled")
        if layer == "hidden" and (layer_idx is None or not -layers - 1 <= layer_idx <= layers):
            raise InputError(f"layer_idx {layer_idx}: layer 'hidden' needs a value from {-layers - 1} to {layers}")
        self.layer, self.layer_idx = layer, layer_idx
        self.eval()
        if freeze:
            self.freeze()

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, L, C); (B, 1, C) for ``layer="pooled"``."""
        output = self.transformer["text_model"](input_ids=tokens, output_hidden_states=self.layer == "hidden")
        if self.layer == "last":
            return output.last_hidden_state
        if self.layer == "pooled":
            return output.pooler_output[:, None, :]
        return output.hidden_states[self.layer_idx]


def _pretrained_clip(version: str) -> CLIPTextModel:
    pickled = Path(version, "pytorch_model.bin")
    try:
        if pickled.is_file() and not list(Path(version).glob("*.safetensors*")):
            config, state = CLIPTextConfig.from_pretrained(version), read_tensors(pickled)
            return CLIPTextModel.from_pretrained(None, config=config, state_dict=state)
        return CLIPTextModel.from_pretrained(version)
    except InputError as error:
        raise InputError(f"version {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"version {version}: no CLIP text model in that folder or under that hub name; "
            "leave version out when the checkpoint brings the text encoder's weights"
        ) from error


class FrozenOpenCLIPEmbedder(TextEncoder):
    """OpenCLIP's text transformer as Stable Diffusion 2.x uses it: a late block's output after the final layer norm.

    Args:
        arch: name of an ``open_clip`` architecture.
        version: an ``open_clip`` weights file or tag to load. None: the weights come with the checkpoint.
        device: accepted for published YAML files, unused.
        max_length: tokens a text.
        freeze: no parameter learns.
        layer: "last", or "penultimate" (published SD 2.x).
        text_config: replaces ``arch``: ``embed_dim`` and the fields of an ``open_clip`` ``text_cfg`` (width, ...).
        cache_size: how many prompts' embeddings are remembered.
        max_windows: 1 cuts long texts, as published; see ``TextEncoder``.

    Raises:
        InputError: unknown ``arch`` or ``layer``, or no weights under ``version``.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str | None = None,
        device: str | None = None,
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        text_config: Mapping[str, Any] | None = None,
        cache_size: int = 1024,
        max_windows: int = 1,
    ) -> None:
        if layer not in ("last", "penultimate"):
            raise InputError(f"layer {layer!r}: must be last or penultimate")
        super().__init__(ClipTokenizer(max_length, pad_token=0), freeze, cache_size, max_windows)
        self.model = _open_clip_text(arch, text_config, max_length)
        # SD 2.x checkpoints carry CLIP's temperature beside the text transformer (the image tower was deleted)
        self.model.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if version is not None:
            self._load(arch, version)
        self.block = self.model.transformer.layers - (1 if layer == "last" else 2)
        self.eval()
        if freeze:
            self.freeze()

    def unread(self) -> list[str]:
        """Weights that checkpoints may lack: of the blocks behind the one whose output is taken, and of comparisons."""
        blocks = re.compile(r"model\.transformer\.resblocks\.(\d+)\.")
        behind = [key for key in self.state_dict() if (match := blocks.match(key)) and int(match[1]) > self.block]
        return [*behind, "model.text_projection", "model.logit_scale"]

    def _load(self, arch: str, version: str) -> None:
        import open_clip

        if Path(version).is_file():
            self._load_file(version)
            return
        try:
            weights = open_clip.create_model(arch, pretrained=version).state_dict()
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"version {version}: no open_clip weights for {arch} in that file or under that tag; "
                "leave version out when the checkpoint brings the text encoder's weights"
            ) from error
        self.model.load_state_dict({key: weights[key] for key in self.model.state_dict()})

    def _load_file(self, version: str) -> None:
        prefix = re.compile(r"^(module\.)?(text\.)?")
        weights = {prefix.sub("", key): value for key, value in read_tensors(version).items()}
        for key, value in self.model.state_dict().items():
            if key not in weights or weights[key].shape != value.shape:
                what = f"{tuple(weights[key].shape)}, not {tuple(value.shape)}" if key in weights else "missing"
                raise InputError(f"version {version}: not weights of this arch: {key} is {what}")
        self.model.load_state_dict({key: weights[key] for key in self.model.state_dict()})

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, L, C)."""
        output = self.model.forward_intermediates(
            tokens,
            indices=[self.block],
            stop_early=True,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return output["text_intermediates"][0]


def _open_clip_text(arch: str, text_config: Mapping[str, Any] | None, max_length: int) -> Any:
    """open_clip's text transformer alone; the image tower, twice its size, is never built."""
    import open_clip
    from open_clip.transformer import QuickGELU, TextTransformer

    if text_config is not None:
        fields = dict(text_config)
    else:
        config = open_clip.get_model_config(arch)
        if config is None or "hf_model_name" in config["text_cfg"]:
            raise InputError(f"arch {arch}: not an open_clip architecture with a CLIP text transformer")
        fields = {**config["text_cfg"], "embed_dim": config["embed_dim"], "quick_gelu": config.get("quick_gelu", False)}
    activation = QuickGELU if fields.pop("quick_gelu", False) else nn.GELU
    fields |= {"context_length": max_length, "output_dim": fields.pop("embed_dim", None)}
    unknown = fields.keys() - inspect.signature(TextTransformer).parameters.keys()
    if unknown:
        raise InputError(f"text_config: open_clip's text transformer has no {', '.join(sorted(unknown))}")
    return TextTransformer(act_layer=activation, **fields)

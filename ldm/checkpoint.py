"""Checkpoints: read safely, load strictly, write whole.

Nothing of a checkpoint is ever run (``common.weights``), every known form of names is understood
(``ldm.checkpoint_names``), and what does not fit is listed by module and refused, unless allowed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from common.bands import BANDS_KEY, Bands, bands_of
from common.errors import InputError
from common.files import PROGRESS_BYTES, atomic_path
from common.schema import one_line, parse_json
from common.weights import finite, read_checkpoint, read_tensors
from ldm.checkpoint_folder import read_parts
from ldm.checkpoint_names import (
    FIRST_STAGE,
    SCHEDULE,
    SCHEDULE_BUFFERS,
    TEXT,
    UNET,
    has_ema,
    module_of,
    published_names,
    take_ema,
)
from ldm.modules.lora import UP, is_lora_weight, matched
from ldm.open_clip_names import as_open_clip

log = logging.getLogger(__name__)

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
# what a weight may be stored as; integers without their scales are no weights
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
NUMBERS = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8))


# ---- reading


def read_state_dict(path: str | os.PathLike[str], use_ema: bool = False) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint under the names of published TISynth checkpoints.

    Tensors stay on disk until they are used (memory-mapped), in the file's precision.

    Args:
        path: a file of ``torch.save`` or safetensors, whatever its name, or a folder in diffusers' layout (a pipeline
            or one of its parts, in one file or in shards).
        use_ema: take the running averages ``model_ema.*`` for the weights they average; else they are left out.

    Returns:
        name -> tensor on the CPU.

    Raises:
        InputError: missing, damaged, contains code, holds no weights, or lacks the averages; names the file.
    """
    path = Path(path)
    with _named(path):
        state = _published(path)
        if not use_ema and has_ema(state):
            log.info("%s also has running averages, as the pictures of its training show; --use-ema takes them", path)
        return take_ema(state, use_ema)


def has_averages(path: Path) -> bool:
    """Whether a checkpoint has running averages, which ``read_state_dict`` takes with ``use_ema``.

    Raises:
        InputError: see there.
    """
    with _named(path):
        return has_ema(_published(path))


def _published(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by published names, averages among them."""
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    state: dict[str, Tensor] = {}
    for name, weights in (read_parts(path) if path.is_dir() else {"": read_tensors(path)}).items():
        part = published_names(weights)
        if clash := state.keys() & part.keys():
            raise InputError(f"{name}/ repeats weights of another part ({one_line(min(clash), 80)})")
        state |= part
    return state


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Has messages name the file."""
    try:
        yield
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error


def read_bands(path: Path) -> Bands | None:
    """What a checkpoint states of its model's images; None where it states nothing.

    Raises:
        InputError: the file cannot be read, or states what cannot be.
    """
    if not path.is_file():
        return None
    with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(BANDS_KEY)
        return None if text is None else bands_of(parse_json(text), f"{path}, {BANDS_KEY}")
    content = read_checkpoint(path)
    held = content.get(BANDS_KEY) if isinstance(content, Mapping) else None
    return bands_of(held, f"{path}, {BANDS_KEY}") if isinstance(held, dict) else None


# ---- loading


@dataclass
class ModuleReport:
    """What became of one module's weights."""

    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def line(self, examples: int = 3, loaded: bool = True) -> str:
        """Counts, and the first few names of what did not load."""
        parts = [f"{self.loaded} loaded"] if self.loaded and loaded else []
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                more = f", and {len(names) - examples} more" if len(names) > examples else ""
                parts.append(f"{len(names)} {kind} ({', '.join(names[:examples])}{more})")
        return ", ".join(parts)


@dataclass
class LoadReport:
    """What was loaded, and what was not, by module."""

    source: str
    modules: dict[str, ModuleReport]

    @property
    def complete(self) -> bool:
        """Every weight of the model came from the checkpoint, and none of the checkpoint's was left over."""
        return not any(part.missing or part.unexpected or part.mismatched for part in self.modules.values())

    @property
    def loaded(self) -> int:
        """Number of tensors loaded."""
        return sum(part.loaded for part in self.modules.values())

    def summary(self) -> str:
        """One line a module: where its weights came from, what is missing, unexpected or of another shape."""
        width = max(map(len, self.modules), default=0)
        lines = [f"  {name:<{width}}  {part.line()}" for name, part in self.modules.items()]
        return "\n".join([f"weights from {self.source}: {self.loaded} tensors", *lines])


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    allow: Sequence[str] = (),
    use_ema: bool = False,
    name: str | None = None,
) -> LoadReport:
    """Copies a checkpoint's weights into a model, parameter by parameter.

    Strict: the model is left as it was when anything is missing, unexpected or of another shape and not allowed. A
    linear layer (C, D) and a 1 x 1 convolution (C, D, 1, 1) are the same matrix. LoRA layers that the model lacks are
    merged, and those that the checkpoint lacks add nothing. What a text encoder has and does not read (OpenCLIP's last
    block in SD 2.x) may be missing, and stays as it was. The noise schedule is the config's: its tables may be in the
    checkpoint or not, and are not loaded (half precision would blur them), but must agree as far as the file's
    precision tells. Weights that are NaN or infinite are refused once all are copied.

    Args:
        model: takes the weights in its own precision and place.
        source: a checkpoint's path, see ``read_state_dict``, or weights by any of the known names.
        allow: modules (``control_model``, ``model.diffusion_model.out``) whose weights need not fit, or ``all``; and
            ``nan``, for weights that are no finite numbers.
        use_ema: see ``read_state_dict``.
        name: what to call the source in messages; its path by default.

    Raises:
        InputError: what does not fit, by module with counts and shapes; weights that are no finite numbers; or
            ``allow`` names no module.
    """
    if isinstance(source, Mapping):
        name, state = name or "these weights", take_ema(published_names(source), use_ema)
    else:
        name, state = name or str(source), read_state_dict(source, use_ema)
    own = model.state_dict()
    state = matched(own, as_open_clip(own, state))
    allow = [allow] if isinstance(allow, str) else list(allow)
    for prefix in allow:
        if prefix not in ("all", "nan") and not any(_within(key, prefix) for key in (*own, *state)):
            known = ", ".join(dict.fromkeys(map(module_of, own)))
            raise InputError(f"‹allow_mismatch› {prefix}: neither model nor checkpoint has such a module ({known})")
    fitting = [key for key in own if key in state and key not in SCHEDULE_BUFFERS and _fits(own[key], state[key])]
    report = _compare(own, state, fitting)
    without_lora = [] if any(map(is_lora_weight, state)) else [key for key in own if is_lora_weight(key)]
    refused = _compare(own, state, fitting, [*allow, *without_lora, *(_unread(model) - state.keys())])
    if not refused.complete or not fitting:
        unfit = (refused if fitting else report).modules.items()
        modules = {module: part for module, part in unfit if part.line(loaded=False)}
        problems = "; ".join(f"{module}: {part.line(loaded=False)}" for module, part in modules.items())
        problems = one_line(problems, 4000)  # names from the file
        raise InputError(
            f"{name}: does not fit the model: {problems}. {_likely_cause(own, state)}Name the ‹config› it was made "
            f"with, or go on without what does not fit: ‹allow_mismatch› {one_line(' '.join(modules), 400)}"
        )
    broken: list[str] = []
    with torch.no_grad():
        for key in without_lora:
            if key.endswith(UP):
                own[key].zero_()
        bytes_to_copy = sum(state[key].nbytes for key in fitting)
        for key in tqdm(fitting, desc=f"load {Path(name).name}", disable=bytes_to_copy < PROGRESS_BYTES):
            own[key].copy_(state[key].reshape(own[key].shape))
            if not finite(own[key]):
                broken.append(key)
    if broken and "nan" not in allow:
        more = f", and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(
            f"{name}: {len(broken)} weights hold NaN or infinite numbers ({', '.join(broken[:3])}{more}), as after a "
            "training that failed; take another checkpoint, or go on with them: ‹allow_mismatch› nan"
        )
    report.source = name
    return report


def _compare(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], fitting: Sequence[str], allow: Sequence[str] = ()
) -> LoadReport:
    """Sorts all names of model and checkpoint, but those that ``allow`` excuses, into modules and kinds."""
    modules = {module_of(key): ModuleReport() for key in own}  # in the model's order
    for key in fitting:
        modules[module_of(key)].loaded += 1
    for key in (*own, *(key for key in state if key not in own)):
        both = key in own and key in state
        if both and _fits(own[key], state[key]):
            continue
        if key in SCHEDULE_BUFFERS or any(prefix == "all" or _within(key, prefix) for prefix in allow):
            continue
        report = modules.setdefault(module_of(key), ModuleReport())
        if both and _same_matrix(own[key], state[key]):
            report.mismatched.append(f"{key}: {state[key].dtype} in the file".replace("torch.", ""))
        elif both:
            report.mismatched.append(f"{key}: {size_of(state[key])} in the file, {size_of(own[key])} in the model")
        else:
            (report.missing if key in own else report.unexpected).append(key)
    schedule = "alphas_cumprod"
    compared = schedule in own and schedule in state and not {"all", SCHEDULE} & set(allow)
    if compared and not _same_table(own[schedule], state[schedule]):
        modules[SCHEDULE] = ModuleReport(mismatched=[f"{schedule}: not what the config's noise schedule gives"])
    return LoadReport("", {module: report for module, report in modules.items() if report.line()})


def _unread(model: nn.Module) -> set[str]:
    """Weights that modules have, but do not read (their method ``unread`` names them): files may lack them."""
    return {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if callable(of_module := getattr(module, "unread", None))
        for key in of_module()
    }


def _within(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(prefix + ".") or module_of(key) == prefix


def _fits(own: Tensor, value: Tensor) -> bool:
    return _same_matrix(own, value) and (not own.is_floating_point() or value.dtype in NUMBERS)


def _same_table(own: Tensor, value: Tensor) -> bool:
    """Whether a table of numbers in 0..1 is the file's, which may have been rounded to float8, then stored as float."""
    if own.shape != value.shape or value.dtype not in NUMBERS:
        return False
    own, value = own.double().cpu(), value.double().cpu()
    for precision in (torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, torch.float16):
        if torch.equal(value.to(precision).double(), value):
            step = torch.finfo(precision)
            return torch.allclose(value, own, rtol=step.eps, atol=step.smallest_normal)
    return torch.allclose(own, value, atol=2e-3)


def _same_matrix(a: Tensor, b: Tensor) -> bool:
    if a.shape == b.shape:
        return True
    return min(a.ndim, b.ndim) == 2 and a.shape[:2] == b.shape[:2] and {1} == {*a.shape[2:], *b.shape[2:]}


def size_of(tensor: Tensor) -> str:
    """A shape as messages write it: 8x3x3."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def _likely_cause(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """One sentence about the architecture of a checkpoint that does not fit, where it is known; else nothing."""
    modules = set(map(module_of, state))
    if not modules & set(map(module_of, own)):
        return f"It holds other modules ({', '.join(sorted(modules)[:4])}). "
    if "conditioner" in modules:
        return "It is an SDXL checkpoint. "
    first = f"{UNET}.input_blocks.0.0.weight"
    if first in own and first in state and state[first].ndim == 4:
        (width, channels), (own_width, own_channels) = state[first].shape[:2], own[first].shape[:2]
        if width != own_width:
            return f"Its U-Net starts with {width} channels, the model's with {own_width}. "
        if channels != own_channels:
            what = "an inpainting U-Net" if channels == 9 else "a U-Net"
            return f"It holds {what} for {channels} input channels, the model's takes {own_channels}. "
    text = {
        side: {key.split(".")[1] for key in names if key.startswith(TEXT + ".")}
        for side, names in (("model", own), ("file", state))
    }
    if text["model"] and text["file"] and not text["model"] & text["file"]:
        kinds = {"model": "OpenCLIP (SD 2.x)", "transformer": "CLIP (SD 1.x)"}
        return f"Its text encoder is {' '.join(kinds.get(kind, kind) for kind in text['file'])}, not the model's. "
    for key in own:
        if key.endswith("attn2.to_k.weight") and key in state and own[key].shape[1:] != state[key].shape[1:2]:
            if state[key].ndim != 2:
                break
            return f"It attends to texts of {state[key].shape[1]} channels, the model to {own[key].shape[1]}. "
    beside = set(map(module_of, own)) - {UNET, FIRST_STAGE, TEXT, SCHEDULE}  # what Stable Diffusion does not have
    if any(".zero_convs." in key for key in own) and not modules & beside:
        return "It has no control branches: make a start checkpoint of it with scripts/init_checkpoint.py. "
    return ""


# ---- writing


def save_state_dict(
    state: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes weights whole or not at all.

    Args:
        state: name -> tensor.
        path: .safetensors, or .ckpt, .pt, .pth for a Lightning checkpoint.
        metadata: texts kept beside the weights.

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *PICKLED):
        raise InputError(f"{path}: unknown kind of checkpoint; end it with .safetensors or .ckpt")
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        tensors[key] = value.clone() if memory in stored else value  # safetensors refuses shared memory
        stored.add(memory)
    texts = dict(metadata or {})
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                save_file(tensors, temporary, {"format": "pt", **texts})
            else:
                version = importlib.metadata.version("pytorch-lightning")
                progress: dict[str, Any] = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": version}
                torch.save({**progress, "state_dict": tensors, "metadata": texts}, temporary)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error

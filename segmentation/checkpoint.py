"""Weights for segmentors: fetched only where the user names an address, and read without running code from them.

mmengine reads weights in many places: ``load_from``, ``resume``, ``init_cfg``, backbones of their own. All ask its
``CheckpointLoader``, whose loaders of every scheme are replaced here; mmengine's own unpickle anything.
"""

from __future__ import annotations

import copy
import fcntl
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_mmcls_models
from mmengine.runner.checkpoint import get_torchvision_models as torchvision_models
from torch import nn

from common.errors import InputError
from common.files import flock
from common.rebuild import History
from common.schema import one_line
from common.weights import read_checkpoint, refuse_not_finite, tensors_of
from segmentation.trees import dictionaries

_ADDRESS = re.compile(r"[\w.+:-]+://")
_DVAE = re.compile(r"d_vae\.encoder\.")
_allowed: set[str] = set()
TRAINING_ONLY = ("auxiliary_head.", *(f"decode_head.{name}_pixel." for name in ("conv_seg", "convs", "fusion_conv")))
"""Beginnings of names of weights that no test uses: auxiliary heads, and GSS-FF's branch for pixels."""


def allow_fetch(*values: Any) -> None:
    """Notes the addresses among what the user gave on the command line, options' values included: these are fetched."""
    for value in values:
        _allowed.update(_addresses(value))


def _addresses(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        if _ADDRESS.match(tree):
            yield tree
    elif isinstance(tree, (Mapping, list, tuple)):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _addresses(value)


def weights_file(named: str) -> Path:
    """The file of weights that the user named by its path, or by an address, from which it is fetched.

    Raises:
        InputError: nothing can be fetched from there.
    """
    allow_fetch(named)
    return _local(named)


def check_sources(config: Config, training: bool) -> None:
    """Refuses a model that would start from weights which the user did not name, or which are none, before the work.

    Args:
        config: changed by all options.
        training: the model's parts start from weights of their own; in a test, all come from one checkpoint.

    Raises:
        InputError: names the address and how to ask for it, or the file.
    """
    for part in dictionaries(config.model):
        named = str(part.get("type")).rpartition(".")[2]
        if named == "TIMMBackbone" and (part.get("pretrained") or part.get("checkpoint_path")):
            raise InputError(
                f"{config.filename}: TIMMBackbone would fetch or read weights by itself; set its "
                "pretrained to False, without checkpoint_path, and give weights by ‹load_from›"
            )
        source = part.get("checkpoint") if named == "Pretrained" else part.get("pretrained")
        if not training or not isinstance(source, str):
            continue
        if _ADDRESS.match(source) and source not in _allowed:
            source = one_line(source, 200)
            raise InputError(
                f"{config.filename}: starts from weights at {source}, which are fetched only where you "
                f"ask for it: ‹pretrained› {source}, or a file, or none"
            )
        try:
            load_from_file(source)
        except InputError as error:
            raise InputError(f"{config.filename}: weights to start from: {error}") from error


def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint's content: tensors on the CPU, numbers, texts and mmengine's message buffers only.

    Args:
        filename: a file; or an address that was given on the command line: ``https://``, ``open-mmlab://``,
            ``torchvision://``, ``mmcls://``.
        map_location: as mmengine's loaders have it; whoever takes the weights moves them.

    Raises:
        InputError: no such file, nothing fetched from there, or a file that is no checkpoint, damaged or code.
    """
    path = _local(filename)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    content = read_checkpoint(path, mapped=False)
    _check(content, path)
    if filename.startswith("mmcls://"):
        state = tensors_of(content, path)
        return {"state_dict": {key[9:]: value for key, value in state.items() if key.startswith("backbone.")}}
    return content


def _check(content: Any, path: Path) -> None:
    """What mmengine takes for granted; and leaves out what it would run."""
    refuse_not_finite(tensors_of(content, path), path, "take another checkpoint")
    if "state_dict" in content and any(not isinstance(key, str) for key in content["state_dict"]):
        raise InputError(f"{path}: state_dict holds names that are no texts; damaged? take another checkpoint")
    if "meta" in content:
        meta = content["meta"]
        facts = meta.get("dataset_meta") if isinstance(meta, dict) else None
        if not isinstance(meta, (dict, type(None))) or not isinstance(facts, (dict, type(None))):
            raise InputError(
                f"{path}: field meta{'.dataset_meta' * isinstance(meta, dict)} is no table of names and "
                "values; damaged? take another checkpoint"
            )
        content["meta"] = {
            key: value for key, value in (meta or {}).items() if key != "config"
        }  # its text is Python that mmengine runs
    hub = content.get("message_hub")
    logs = hub.get("log_scalars") if isinstance(hub, dict) else None
    if not isinstance(logs, dict):
        return
    for name, value in logs.items():
        if isinstance(value, History):
            if value.log is None:
                raise InputError(f"{path}: log {one_line(name, 40)} holds nothing; damaged? take another checkpoint")
            logs[name] = HistoryBuffer(value.log, value.count, value.length)


for _scheme in {"": None, **CheckpointLoader._schemes}:
    CheckpointLoader.register_scheme(_scheme, load_from_file, force=True)


# --- fetching -----------------------------------------------------------------------------------------------------


def _local(named: str) -> Path:
    """A file by its path or address; see ``_fetch``."""
    return _fetch(named) if _ADDRESS.match(named) else Path(named).expanduser()


def _fetch(address: str) -> Path:
    """A file with what is at an address; the one that was fetched before, if there is one.

    Raises:
        InputError: the address was not given by the user, names nothing known, or cannot be fetched from.
    """
    shown = one_line(address, 200)
    if address not in _allowed:
        raise InputError(
            f"{shown}: weights are fetched only from addresses on the command line; name it there, or "
            "fetch the file yourself and name that"
        )
    url = _resolve(address)
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{shown}: nothing can be fetched from there; fetch the file yourself and name that")
    target = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name or "weights")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with flock(
            target.with_name(f".{target.name}.lock"), fcntl.LOCK_EX
        ):  # the first process fetches, the others find the file
            if not target.is_file():
                torch.hub.download_url_to_file(url, str(target), progress=False)  # renames a finished file
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{shown}: cannot be fetched to {target.parent} ({one_line(error)}); name a file of weights"
        ) from error
    return target


def _resolve(address: str) -> str:
    scheme, _, name = address.partition("://")
    tables = {
        "open-mmlab": get_external_models,
        "openmmlab": get_external_models,
        "mmcls": get_mmcls_models,
        "torchvision": torchvision_models,
        "modelzoo": torchvision_models,
    }
    if scheme not in tables:
        return address
    if scheme in ("open-mmlab", "openmmlab"):
        name = get_deprecated_model_names().get(name, name)
    found = tables[scheme]().get(name)
    if found is None:
        raise InputError(f"{one_line(address, 200)}: {scheme} has no weights of that name; name a file")
    return str(found)


# --- loading ------------------------------------------------------------------------------------------------------


def _with_dvae(part: Mapping[str, Any]) -> bool:
    return "palette" in part or "d_vae" in part  # a head of GSS


def with_its_dvae(model: Any, path: str | None) -> Any:
    """A model's config whose dVAE, a part of GSS heads, comes from the checkpoint that the model is to start from.

    A checkpoint of GSS holds its dVAE: no second file is needed, whatever the config names.

    Args:
        model: a model's config; left as it is.
        path: the checkpoint; None leaves the dVAE to the config.

    Raises:
        InputError: neither the checkpoint nor the config has a dVAE.
    """
    if not any(_with_dvae(part) for part in dictionaries(model)):
        return model
    held = False
    if path is not None:
        path = str(_local(path))
        held = any(_DVAE.search(str(key)) for key in tensors_of(read_checkpoint(path), path))
    model = copy.deepcopy(model)
    for part in filter(_with_dvae, dictionaries(model)):
        d_vae = part.get("d_vae") or {}
        if held:
            part["d_vae"] = {**d_vae, "weights": path}
        elif not d_vae.get("weights"):
            raise InputError(
                f"{part.get('type')}: no dVAE: the config names none"
                f"{f', and {path} holds none (d_vae.encoder ...)' if path else ''}; set d_vae.weights of "
                "the head, or load a whole GSS checkpoint (‹load_from›)"
            )
    return model


def differences(expected: Mapping[str, Any], weights: Mapping[str, Any], optional: tuple[str, ...]) -> list[str]:
    """What of the weights does not fit a model, in words.

    Args:
        expected: the model's state.
        weights: by name.
        optional: beginnings of names that may be absent or surplus.
    """

    def needed(key: str) -> bool:
        return not key.startswith(optional) and not key.endswith(".num_batches_tracked")  # a counter, not always saved

    found = [f"{key} is missing" for key in expected if key not in weights and needed(key)]
    found += [f"{key} is unknown" for key in weights if key not in expected and needed(key)]
    shared = [(key, value, expected[key]) for key, value in weights.items() if key in expected]
    found += [
        f"{key} is {tuple(value.shape)}, the config's {tuple(own.shape)}"
        for key, value, own in shared
        if value.shape != own.shape
    ]
    return found + [
        f"{key} holds {value.dtype}"
        for key, value, own in shared
        if value.is_floating_point() != own.is_floating_point()
    ]


def first_few(lines: list[str]) -> str:
    """The first few differences in one line, with the number of the others."""
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return one_line("; ".join(lines[:3])) + more


def load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Loads a checkpoint's weights into a segmentor; only what is for training alone may be absent or surplus.

    Returns:
        The checkpoint's ``meta``.

    Raises:
        InputError: the weights are another model's, or NaN.
    """
    allow_fetch(path)
    checkpoint = load_from_file(path, "cpu")
    weights = {key.removeprefix("module."): value for key, value in tensors_of(checkpoint, path).items()}
    if unfit := differences(model.state_dict(), weights, (*TRAINING_ONLY, "data_preprocessor.")):
        raise InputError(f"{path}: weights of another model than the config's: {first_few(unfit)}")
    model.load_state_dict(weights, strict=False)
    meta = checkpoint.get("meta") or {}
    return meta if isinstance(meta, dict) else {}

"""mmseg configs: read, checked, searched; and what goes wrong with their parts, said in one line."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from common import house
from common.errors import InputError
from common.schema import one_line
from segmentation import checkpoint
from segmentation.cfg_options import apply_settings, parse_settings
from segmentation.config_schema import check_schema
from segmentation.loading import use_own_readers
from segmentation.trust import check_imports, check_plain, check_types, of_results

HEADS = ("decode_head", "auxiliary_head")
PARTS = ("train", "val", "test")


def load_config(
    config: str | Path | Config, settings: Sequence[str] | Mapping[str, Any] = (), trust: bool = False
) -> Config:
    """An mmseg config, checked and with the settings that replace its own.

    mmseg configs are Python and run when they are read; see ``segmentation.trust`` for those that are read as data.

    Args:
        config: its file; or one that was read, which is copied.
        settings: values to set, ``{"train_cfg.max_iters": 10}`` or ``["train_cfg.max_iters=10"]``.
        trust: runs the config even if it lies in a folder of results.

    Raises:
        InputError: no such file, not an mmseg config, code in a folder of results, or an import of it that is not
            installed.
    """
    values = parse_settings(settings)
    config = _copied(config) if isinstance(config, Config) else _read(Path(config), trust)
    if not isinstance(config.get("model"), dict) or "type" not in config.model:
        raise InputError(f"{config.filename}: not an mmseg config: no model with a field 'type'")
    apply_settings(config, values)
    checkpoint.allow_fetch(values)
    check_schema(config)
    for part in PARTS:
        loader = config.get(f"{part}_dataloader") or {}
        if loader.get("persistent_workers") and not loader.get(
            "num_workers"
        ):  # torch refuses to keep workers where there are none
            loader["persistent_workers"] = False
    if use_own_readers(config._cfg_dict):
        imports = config.get("custom_imports") or {}
        if "segmentation" not in (
            imports.get("imports") or []
        ):  # the saved config is read without this function; mmseg must find our readers
            config.custom_imports = {**imports, "imports": [*(imports.get("imports") or []), "segmentation"]}
    init_default_scope(config.get("default_scope") or "mmseg")
    return config


def _copied(config: Config) -> Config:
    copied = copy.deepcopy(config)
    if copied.filename is None:  # built in Python: messages and folders need a name
        object.__setattr__(copied, "_filename", "config.py")
    with errors_in_one_line(copied, "custom_imports"):
        _import_modules(copied)
    return copied


def _read(file: Path, trust: bool) -> Config:
    if not file.is_file():
        raise InputError(f"{one_line(file)}: no such config")
    if file.suffix not in (".py", ".json"):
        raise InputError(f"{file}: an mmseg config is a .py file, or .json")
    data = not trust and of_results(file)
    if data:
        check_plain(file)
    try:
        config = Config.fromfile(str(file), import_custom_modules=False)
        if data:
            check_imports(str(file), config.get("custom_imports"))
        _import_modules(config)
    except (Exception, SystemExit) as error:  # a config is code: anything may go wrong in it
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: cannot be read as an mmseg config: {in_one_line(error)}") from error
    if data:
        check_types(str(file), config._cfg_dict)
    return config


def _import_modules(config: Config) -> None:
    """Imports what a config names; our modules are inside ``tisynth`` where that is installed."""
    if imports := config.get("custom_imports"):
        names = [imports["imports"]] if isinstance(imports["imports"], str) else imports["imports"]
        names = [house.module_path(name) if isinstance(name, str) else name for name in names]
        import_modules_from_strings(**{**imports, "imports": names})


def in_one_line(error: BaseException) -> str:
    """What an error of foreign code says, in one line; of an error in a data worker, its own last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = one_line(lines[-1] if lines and "Traceback" in str(error) else " ".join(lines), 300)
    if isinstance(error, InputError):
        return text.removeprefix(f"{InputError.__module__}.InputError: ")
    if not text and (frames := traceback.extract_tb(error.__traceback__)):
        text = f"{frames[-1].line} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    if text == "None is not a callable object":  # so mmengine says that it does not know a name
        text = "a type that it names is not registered"
    return f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def errors_in_one_line(config: Config, part: str) -> Iterator[None]:
    """Turns an error of foreign code into one line that names the config and the part of it.

    Raises:
        InputError: any error.
    """
    try:
        yield
    except InputError as error:
        if "\n" not in str(error):
            raise
        raise InputError(in_one_line(error)) from error  # of a data worker: the message holds its whole traceback
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
            raise InputError(f"{config.filename}, {part}: too little memory; lower batch_size or crop_size") from error
        raise InputError(f"{config.filename}, {part}: {in_one_line(error)}") from error


def heads(config: Config) -> Iterator[Any]:
    """The decode heads and auxiliary heads of a config's model."""
    for name in HEADS:
        head = config.model.get(name)
        for one in head if isinstance(head, (list, tuple)) else [head]:
            if isinstance(one, dict):
                yield one

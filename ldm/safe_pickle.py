"""Reading what ``torch.save`` wrote without running any of it.

A pickle names the functions that rebuild its objects. Tensors need a few of torch's own; old Lightning checkpoints also
name classes of callbacks and configurations. Those become inert placeholders; a file that names anything else is
refused before it is unpickled.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import safe_globals

from common.errors import InputError

# Named in Lightning checkpoints beside the weights: never imported, never called.
_INERT = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|torchmetrics|omegaconf|ldm|cldm|sgm|typing)\..+"
    r"|pathlib\.\w*Path|argparse\.Namespace|collections\.defaultdict|datetime\.\w+"
    r"|numpy\.(dtype|ndarray|dtypes\.\w+|random\..+|(_core|core)\.multiarray\.(scalar|_reconstruct))"
    r"|builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
)
# torch's own list decides about these when it unpickles
_TORCH_DECIDES = re.compile(r"torch\..+|collections\.(OrderedDict|Counter)|_codecs\.encode")


class _Inert:
    """Takes the place of an object of a class that is not loaded; forgets all it is given."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _InertMapping:
    """The same for dict-like classes, whose items the unpickler sets one by one."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


def load_pickled(path: Path) -> Any:
    """Reads a file of ``torch.save``; tensors stay on disk until they are used, where the format allows it.

    Args:
        path: zip format (torch 1.6 and later) or the older one.

    Raises:
        InputError: the file is no checkpoint, cut off or damaged, or contains code.
    """
    names, zipped = _named_globals(path)
    code = sorted(name for name in names if not (_INERT.fullmatch(name) or _TORCH_DECIDES.fullmatch(name)))
    if code:
        raise _contains_code(path, code)
    placeholders: list[Any] = [
        (_InertMapping if name.lower().endswith("dict") else _Inert, name) for name in names if _INERT.fullmatch(name)
    ]
    try:
        with safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever goes wrong in an unpickler, the file is to blame
        if refused := re.search(r"GLOBAL (torch\.\S+)", str(error)):
            raise _contains_code(path, [refused[1]]) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: cannot be read, cut off or damaged? ({reason[:160]})") from error


def _contains_code(path: Path, names: list[str]) -> InputError:
    return InputError(
        f"{path}: contains code ({', '.join(names[:3])}), refused and not run: only weights are loaded; "
        "ask for a .safetensors file, or save the state dict alone"
    )


def _named_globals(path: Path) -> tuple[set[str], bool]:
    """Full names of all functions and classes that a file names, found without unpickling; and is it a zip file."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if not start:
            raise InputError(f"{path}: empty file, no checkpoint")
        if start == b"PK\x03\x04":
            try:
                with zipfile.ZipFile(file) as archive:
                    inner = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                    if len(inner) != 1 or any("/code/" in name for name in archive.namelist()):
                        raise InputError(f"{path}: a zip file, but no checkpoint written by torch.save")
                    with archive.open(inner[0]) as pickled:
                        return _scan(pickled), True
            except (zipfile.BadZipFile, ValueError, EOFError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{path}: cut off or damaged ({error}); copy or download it again") from error
        names: set[str] = set()
        try:
            for _ in range(5):  # format number, version, machine, the object, and the names of its storages
                names |= _scan(file)
        except Exception as error:  # the scan met no pickle, or its end
            if not names:
                raise InputError(f"{path}: no checkpoint (neither written by torch.save nor safetensors)") from error
    return names, False


def _scan(stream: IO[bytes]) -> set[str]:
    names: set[str] = set()
    strings: list[str] = []
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in ("GLOBAL", "INST"):
            module, name = str(argument).split(" ", 1)
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            names.add(f"{module}.{name}")
        elif operation.name == "STACK_GLOBAL":  # protocol 4: module and name are the last two strings
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return names

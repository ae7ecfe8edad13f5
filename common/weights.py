"""The one reader of weights: checkpoints of ``torch.save`` (zip, and the older format) and safetensors.

By the first bytes, not by the name. Nothing in a file is ever run (``common.pickles``); sizes are checked against the
file's before anything of that size is made; what the file has checksums of is checked. Tensors are mapped from the
file, so that reading costs no memory before they are used.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import InputError
from common.pickles import ContainsCodeError, interpret
from common.rebuild import BUILDERS, CONSTANTS, STATES, Storage
from common.schema import one_line, parse_json

PICKLE_BYTES = 2**28  # of the pickle in a checkpoint: names, shapes and logs, not the weights
HEADER_BYTES = 2**24  # of safetensors: a hundred thousand tensors
DIRECTORY_BYTES = 2**24  # of a zip file: a hundred thousand tensors
WRAPPERS = ("state_dict", "module", "model")  # Lightning and mmengine, DeepSpeed, plain PyTorch
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's older format

# Named in checkpoints beside the weights. The objects become data without a use.
_BESIDE = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|torchmetrics|omegaconf|ldm|cldm|sgm|typing"
    r"|mmengine|mmcv|mmseg|addict)\..+"
    r"|pathlib(\._local)?\.\w*Path|argparse\.Namespace|collections\.defaultdict|datetime\.\w+"
    r"|numpy\.(ndarray|dtypes\.\w+|random\..+)|builtins\.(bool|dict|float|int|list|object|range|slice|str|tuple)"
)
# A module pickled whole, as DALL-E's published files are: its classes stand for data as well.
MODULES = re.compile(r"(dall_e(\.\w+)*|torch\.nn\.modules\.\w+)\.[A-Z]\w*")


class CodeError(InputError):
    """A file of weights that would have to run something."""


def read_checkpoint(path: str | os.PathLike[str], mapped: bool = True, inert: re.Pattern[str] | None = None) -> Any:
    """What a file of weights holds: tensors on the CPU, containers, numbers, texts, numpy values.

    mmengine's message buffers come as ``common.rebuild.History``, objects of classes that are beside the point as
    ``common.pickles.Inert``.

    Args:
        path: written by ``torch.save`` or safetensors, whatever its name.
        mapped: leave tensors in the file until they are used; False for files that may be written over meanwhile.
        inert: further names of classes whose objects are taken as ``Inert``.

    Raises:
        InputError: missing, damaged, cut off, contains code, or no such file at all; names the file in one line.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(f"{path}: {'a folder, not a file of weights' if path.is_dir() else 'no such file'}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            file.seek(0)
            if not start:
                raise InputError(f"{path}: empty file, no checkpoint")
            if start[:2] == b"PK":
                return _read_zip(path, file, size, mapped, inert)
            if start[8:9] == b"{" or (path.suffix == ".safetensors" and start[:1] != b"\x80"):
                return _read_safetensors(path, file, size)
            return _read_older(path, file, start, size, mapped, inert)
    except InputError:
        raise
    except ContainsCodeError as error:
        raise CodeError(
            f"{path}: contains code ({one_line(error, 80)}), refused and not run: only weights are loaded; ask for a "
            ".safetensors file, or save the state dict alone"
        ) from error
    except Exception as error:  # whatever goes wrong in reading, the file is to blame
        reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read, cut off or damaged? ({reason}); copy or download it again"
        ) from error


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file by name: of its ``state_dict``, ``module`` or ``model``, else of the whole.

    Raises:
        InputError: see ``read_checkpoint``; or there are no tensors in it.
    """
    return tensors_of(read_checkpoint(path), path)


def tensors_of(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The same of what ``read_checkpoint`` gave; ``path`` is for the message."""
    # some merges hold a state_dict in a state_dict, which published code reads as well
    content = _unwrapped(_unwrapped(content, WRAPPERS), WRAPPERS[:1])
    items = content.items() if isinstance(content, Mapping) else ()
    state = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise InputError(f"{path}: holds no weights (no tensors in it, nor under 'state_dict')")
    return state


def _unwrapped(content: Any, wrappers: Sequence[str]) -> Any:
    """What stands under the first of these names that is there, else the whole."""
    for wrapper in wrappers:
        if isinstance(content, Mapping) and wrapper in content and not isinstance(content[wrapper], Tensor):
            return content[wrapper]
    return content


def finite(tensor: Tensor) -> bool:
    """Whether all its numbers are: neither NaN nor infinite. In one pass, without memory of its size."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel() or tensor.is_meta:
        return True
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    if tensor.element_size() == 1:  # float8 has no minimum of its own
        tensor = tensor.float()
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))


def refuse_not_finite(state: Mapping[str, Tensor], path: object, remedy: str) -> None:
    """Names the weights that are NaN or infinite.

    Raises:
        InputError: there are some; ``remedy`` says what to do.
    """
    if broken := [key for key, value in state.items() if not finite(value)]:
        more = f", and {len(broken) - 3} more" if len(broken) > 3 else ""
        names = one_line(", ".join(broken[:3]))
        raise InputError(f"{path}: NaN or infinite weights ({names}{more}); {remedy}")


# ---- safetensors


def _read_safetensors(path: Path, file: IO[bytes], size: int) -> dict[str, Tensor]:
    try:
        if size < 8:
            raise ValueError("too short for a header")
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, HEADER_BYTES):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = parse_json(file.read(length).decode())  # the library takes a name that stands there twice
        if not isinstance(header, dict) or any(not isinstance(entry, dict) for entry in header.values()):
            raise ValueError("its header is no table of tensors")
        with safe_open(path, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError, OSError, RecursionError, AttributeError, RuntimeError) as error:
        reason = one_line(error)
        raise InputError(
            f"{path}: no safetensors file, cut off or damaged ({reason}); copy or download it again"
        ) from error


# ---- torch.save


def _read_zip(path: Path, file: IO[bytes], size: int, mapped: bool, inert: re.Pattern[str] | None) -> Any:
    entries = _directory(path, file, size)
    inner = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(inner) != 1:
        raise InputError(f"{path}: a zip file, but no checkpoint written by torch.save")
    folder = inner[0].removesuffix("data.pkl")
    if entries[inner[0]].file_size > PICKLE_BYTES:
        raise ValueError(f"a pickle of {entries[inner[0]].file_size:,} bytes")
    order = entries.get(f"{folder}byteorder")
    if order is not None and _record(file, order) == b"big":
        raise InputError(f"{path}: written on a machine of the other byte order; convert it there")
    storages: dict[str, Storage] = {}
    whole = _whole(path, size)

    def storage(key: str, dtype: torch.dtype, count: int) -> Storage:
        entry = entries[f"{folder}data/{key}"]
        if count * dtype.itemsize != entry.file_size:
            raise ValueError(f"storage {key} of {entry.file_size} bytes is said to have {count} numbers")
        if key not in storages:
            offset = _offset(file, entry)
            _check_sum(file, entry, offset)
            storages[key] = Storage(_piece(whole, offset, entry.file_size, dtype, mapped), dtype)
        elif storages[key].dtype != dtype:
            return Storage(storages[key].data, dtype)
        return storages[key]

    return _unpickle(_Bounded(_record(file, entries[inner[0]])), storage, inert)


def _directory(path: Path, file: IO[bytes], size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of a zip file by name; refused where they cannot lie in it as ``torch.save`` writes them."""
    try:
        tools: Any = zipfile  # its own function for the last record, which says how large the directory is
        end = tools._EndRecData(file)
        if end is None or end[tools._ECD_SIZE] > min(DIRECTORY_BYTES, size):
            raise ValueError("no directory" if end is None else "a directory larger than any checkpoint's")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError) as error:
        raise InputError(f"{path}: cut off or damaged ({one_line(error)}); copy or download it again") from error
    by_name = {entry.filename: entry for entry in entries}
    if len(by_name) < len(entries):
        raise InputError(f"{path}: a zip file that holds a name twice, as no checkpoint does")
    # a checkpoint saved as code.ckpt has a folder "code", too, but no source in it
    if any(re.search(r"(^|/)(code/.*\.py|constants\.pkl)$", name) for name in by_name):
        raise CodeError(f"{path}: a TorchScript program, refused and not run: save the state dict alone")
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type or entry.flag_bits & 1 or entry.compress_size != entry.file_size for entry in entries):
        raise InputError(
            f"{path}: a compressed zip file ({size:,} bytes, {unpacked:,} unpacked), refused: torch.save compresses "
            "nothing; if you trust it, unzip it and pack it again with zip -0"
        )
    if unpacked > size:
        raise InputError(f"{path}: a zip file of {size:,} bytes that claims {unpacked:,}; copy or download it again")
    return by_name


def _offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes start; ``zipfile``'s own way reads them all."""
    file.seek(entry.header_offset)
    signature, _, name, extra = struct.unpack("<4s22sHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise ValueError(f"{one_line(entry.filename, 40)} is not where the directory says")
    offset: int = entry.header_offset + 30 + name + extra
    if offset + entry.file_size > os.fstat(file.fileno()).st_size:
        raise ValueError(f"{one_line(entry.filename, 40)} ends behind the file")
    return offset


def _record(file: IO[bytes], entry: zipfile.ZipInfo) -> bytes:
    offset = _offset(file, entry)
    _check_sum(file, entry, offset)
    file.seek(offset)
    return file.read(entry.file_size)


_CHECKED: set[tuple[int, ...]] = set()  # entries whose sums agreed, in this process


def _check_sum(file: IO[bytes], entry: zipfile.ZipInfo, offset: int) -> None:
    status = os.fstat(file.fileno())
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, offset, entry.file_size, entry.CRC
    if identity in _CHECKED or not entry.CRC:  # torch.serialization.set_crc32_options(False) writes zeros
        return
    file.seek(offset)
    total, left = 0, entry.file_size
    while left and (block := file.read(min(left, 2**22))):
        total, left = zlib.crc32(block, total), left - len(block)
    if left or total != entry.CRC:
        raise ValueError(f"the checksum of {one_line(entry.filename, 40)} is wrong")
    _CHECKED.add(identity)


def _read_older(
    path: Path, file: IO[bytes], start: bytes, size: int, mapped: bool, inert: re.Pattern[str] | None
) -> Any:
    """The format before torch 1.6: pickles of marks, of the object and of storages' names, then the storages."""
    if start[257:262] == b"ustar":
        raise InputError(f"{path}: a tar file, torch's format before 2017; load and save it once with torch 1")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git LFS pointer instead of the weights; fetch them with git lfs pull")

    def none(key: str, dtype: torch.dtype, count: int) -> Storage:
        raise ValueError("a storage before the object")

    bounded = _Bounded(file, min(size, PICKLE_BYTES))
    try:
        magic = _unpickle(bounded, none, inert)
    except ContainsCodeError:
        raise
    except Exception as error:
        raise InputError(f"{path}: no checkpoint (neither written by torch.save nor safetensors)") from error
    if magic != _MAGIC:
        raise InputError(f"{path}: no checkpoint (a pickle, but not written by torch.save)")
    _unpickle(bounded, none, inert)  # the version of the format
    system = _unpickle(bounded, none, inert)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError(f"{path}: written on a machine of the other byte order; convert it there")
    # the object is read twice: first without memory for its storages, whose places follow it
    begin = file.tell()
    found: dict[str, tuple[torch.dtype, int]] = {}

    def note(key: str, dtype: torch.dtype, count: int) -> Storage:
        if found.setdefault(key, (dtype, count)) != (dtype, count) or count * dtype.itemsize > size:
            raise ValueError(f"storage {key} of {count} numbers in a file of {size} bytes")
        return Storage(torch.UntypedStorage(count * dtype.itemsize, device="meta"), dtype)

    _unpickle(bounded, note, inert)
    keys = _unpickle(bounded, none, inert)
    if not isinstance(keys, list) or len(keys) != len(found) or {*map(str, keys)} != found.keys():
        raise ValueError("its list of storages is not that of its tensors")
    storages: dict[str, Storage] = {}
    whole = _whole(path, size)
    offset = file.tell()
    for key in map(str, keys):
        dtype, count = found[key]
        file.seek(offset)
        if (said := int.from_bytes(file.read(8), "little")) != count or offset + 8 + count * dtype.itemsize > size:
            raise ValueError(f"storage {key} of {count} numbers has {said}, {size - offset - 8} bytes before the end")
        storages[key] = Storage(_piece(whole, offset + 8, count * dtype.itemsize, dtype, mapped), dtype)
        offset += 8 + count * dtype.itemsize
    if offset != size:
        raise ValueError(f"{size - offset} bytes behind its last storage")
    file.seek(begin)
    return _unpickle(_Bounded(file, min(size, PICKLE_BYTES)), lambda key, dtype, count: storages[key], inert)


def _whole(path: Path, size: int) -> torch.UntypedStorage:
    return cast(torch.UntypedStorage, torch.UntypedStorage.from_file(os.fspath(path), False, size))


def _piece(
    whole: torch.UntypedStorage, offset: int, size: int, dtype: torch.dtype, mapped: bool
) -> torch.UntypedStorage:
    """Bytes of a file: the file's own memory, or a copy where they are to be kept or lie at an odd place."""
    piece = whole[offset : offset + size]
    assert isinstance(piece, torch.UntypedStorage)
    return piece if mapped and size and offset % dtype.itemsize == 0 else piece.clone()


class _Bounded:
    """Reads pickles of a file, each of which names the lengths of its parts, and not more than is there."""

    def __init__(self, source: IO[bytes] | bytes, limit: int = PICKLE_BYTES) -> None:
        self.file = io.BytesIO(source) if isinstance(source, bytes) else source
        self.left = limit

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""
        if size > self.left or size < 0:
            raise ValueError("a pickle longer than the file, or than any checkpoint's")
        block = self.file.read(size)
        self.left -= len(block)
        return block

    def readline(self, size: int = -1, /) -> bytes:
        """A line; the texts of pickles are shorter than 64 KiB."""
        line = self.file.readline(2**16)
        self.left -= len(line)
        return line


def _unpickle(
    source: _Bounded, storage: Callable[[str, torch.dtype, int], Storage], inert: re.Pattern[str] | None
) -> Any:
    def persistent(identity: Any) -> Any:
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), _, int(count)) if count >= 0:
                return storage(key, dtype, count)
            case ("storage", torch.dtype() as dtype, str(key), _, int(count), None) if count >= 0:  # the older format
                return storage(key, dtype, count)
            case ("module", kind, *_) if inert is not None:  # of a module pickled whole: its class and its source
                return kind
        raise ValueError("a storage of a kind that no checkpoint has")

    def known(name: str) -> bool:
        return bool(_BESIDE.fullmatch(name) or (inert is not None and inert.fullmatch(name)))

    return interpret(source, BUILDERS, STATES, CONSTANTS, known, persistent)

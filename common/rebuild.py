"""What the pickle in a checkpoint may call: functions that make tensors, numpy values and plain containers.

Each stands for a function of torch, numpy or Python that the pickle names, takes anything, and refuses what a
checkpoint would not hold. None of them looks up, imports or calls what it is given.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.pickles import ContainsCodeError, Name, plain

EXPANDED = 2**20  # numbers that a tensor may repeat beyond those in its storage (a mask made by ``expand``)


@dataclass(eq=False)
class Storage:
    """The memory of tensors, and the type by which a file names it."""

    data: torch.UntypedStorage
    dtype: torch.dtype


@dataclass(eq=False)
class History:
    """mmengine's ``HistoryBuffer`` as data: logged values, how many each stands for, how many are kept."""

    log: Any = None
    count: Any = None
    length: int = 0


@dataclass(eq=False)
class DType:
    """A numpy number type while its byte order is not known yet."""

    code: str
    order: str = "="

    def get(self) -> np.dtype[Any]:
        """The type."""
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A view of a storage, within its bounds."""
    dtype = storage.dtype if dtype is None else dtype
    numbers = [offset, *size, *stride]
    if not isinstance(dtype, torch.dtype) or len(size) != len(stride) or len(size) > 32:
        raise ValueError("a tensor without a shape")
    if any(type(number) is not int or not 0 <= number < 2**50 for number in numbers):
        raise ValueError("a tensor with a shape of no whole numbers")
    room = storage.data.nbytes() // dtype.itemsize
    count = math.prod(size)
    if count and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= room:
        raise ValueError("a tensor beyond its storage")
    if count > max(room, EXPANDED):
        raise ValueError(f"a tensor of {count:,} numbers on a storage of {room:,}")
    return torch.empty(0, dtype=dtype, device=storage.data.device).set_(
        storage.data, offset if count else 0, torch.Size(size), tuple(stride)
    )


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any = False, __: Any = None, metadata: Any = None
) -> Tensor:
    if metadata:
        raise ValueError("a tensor that is conjugated or negated")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    if metadata:
        raise ValueError("a tensor that is conjugated or negated")
    return _tensor(storage, offset, size, stride, dtype)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _getattr(owner: Any = None, name: Any = None, *_: Any) -> Name:
    """Names that mmengine's buffers keep of their own statistics; nothing is looked up, and nothing else named."""
    if owner != Name(_HISTORY) or name not in ("current", "max", "mean", "min"):
        raise ContainsCodeError("builtins.getattr")
    return Name(f"{_HISTORY}.{name}")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes, as pickles up to protocol 2 write them."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding that no checkpoint uses")
    return text.encode("latin1")


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    """Of bytes or text, not of a length."""
    return bytes(content) if isinstance(content, (bytes, bytearray)) else _encode(content, encoding)


def _members(values: Any = ()) -> Iterator[Any]:
    return map(plain, _items(values))


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    """Empty, its items follow; or, of Python 2, with a list of pairs."""
    return OrderedDict((plain(key), value) for key, value in map(_items, _items(items)))


def _items(values: Any) -> Any:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"a container made of a {type(values).__name__}")
    return values


def _counter(counts: Any = None) -> Counter[Any]:
    if not isinstance(counts, (dict, type(None))):
        raise ValueError("a counter of no counts")
    return Counter(counts)


def _complex(real: Any = 0.0, imaginary: Any = 0.0) -> complex:
    return complex(float(real), float(imaginary))


def _size(sizes: Any = ()) -> torch.Size:
    return torch.Size(sizes)


def _device(*parts: Any) -> str:
    """Of no use here: all tensors are on the CPU."""
    return ":".join(map(str, parts))


# ---- numpy


def _dtype(code: Any = None, *_: Any) -> DType:
    if type(code) is not str or not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,6}", code):
        raise ValueError("a numpy type of no plain numbers or texts")
    return DType(code)


def _dtype_state(dtype: DType, state: Any) -> None:
    if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
        raise ValueError("a numpy type of unknown byte order")
    dtype.order = state[1]


def _empty_array(*_: Any) -> np.ndarray[Any, Any]:
    return np.empty(0)


def _array_state(array: np.ndarray[Any, Any], state: Any) -> None:
    _, shape, dtype, fortran, content = state
    content = _bytes(content)
    _check_shape(shape, dtype.get(), content)
    array.__setstate__((1, shape, dtype.get(), bool(fortran), content))  # type: ignore[arg-type]


def _array_from(content: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray[Any, Any]:
    """The same, as pickles of protocol 5 write it."""
    content = _bytes(content)
    _check_shape(shape, dtype.get(), content)
    return np.frombuffer(bytearray(content), dtype.get()).reshape(shape, order="F" if order == "F" else "C")


def _check_shape(shape: Any, dtype: np.dtype[Any], content: bytes) -> None:
    if type(shape) is not tuple or any(type(side) is not int or side < 0 for side in shape) or len(shape) > 32:
        raise ValueError("an array without a shape")
    if not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array of another size than its content")


def _scalar(dtype: Any, content: Any) -> Any:
    content = _bytes(content)
    _check_shape((), dtype.get(), content)
    return np.frombuffer(content, dtype.get())[0]


_NUMPY: dict[str, Callable[..., Any]] = {
    f"numpy.{core}.multiarray.{name}": function
    for core in ("core", "_core")
    for name, function in (("_reconstruct", _empty_array), ("scalar", _scalar))
} | {f"numpy.{core}.numeric._frombuffer": _array_from for core in ("core", "_core")}

BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": lambda *parts: bytearray(_bytes(*parts)),
    "builtins.set": lambda *values: set(_members(*values)),
    "builtins.frozenset": lambda *values: frozenset(_members(*values)),
    "builtins.complex": _complex,
    "builtins.getattr": _getattr,
    "numpy.dtype": _dtype,
    _HISTORY: lambda *_: History(),
    **_NUMPY,
}


def _history_state(history: History, state: Any) -> None:
    log, count, length = state["_log_history"], state["_count_history"], state["max_length"]
    if any(type(a) is not np.ndarray or a.ndim != 1 or a.dtype.kind not in "iufb" for a in (log, count)):
        raise ValueError("a message buffer without values")
    if len(log) != len(count) or type(length) is not int or length < 1:
        raise ValueError("a message buffer of two lengths")
    history.log, history.count, history.length = log, count, length


STATES: dict[type, Callable[[Any, Any], None]] = {
    np.ndarray: _array_state,
    DType: _dtype_state,
    History: _history_state,
}
# names that stand for a value, and are never called
CONSTANTS: dict[str, Any] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
CONSTANTS |= {f"torch{part}.{name}": dtype for part in ("", ".cuda") for name, dtype in _STORAGES.items()}
CONSTANTS["torch.storage.UntypedStorage"] = torch.uint8
for _name in ("current", "max", "mean", "min"):  # protocol 4 names them at once
    CONSTANTS[f"{_HISTORY}.{_name}"] = Name(f"{_HISTORY}.{_name}")

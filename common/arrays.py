"""Arrays in ``.npy`` files: read without running code, and checked before they take memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.files import atomic_path
from common.schema import one_line


def write_array(values: NDArray[Any], path: Path) -> None:
    """Writes an array whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, values, allow_pickle=False)


def check_array(path: Path, dtype: str, shape: tuple[int, ...], remedy: str = "") -> int:
    """Whether a file is an array of that type and shape, by its header and its length; its numbers are not read.

    Returns:
        The place of the first number in the file.

    Raises:
        InputError: it is not; names the file and what is wrong.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found_shape, by_columns, found = read(file)
            start, size = file.tell(), path.stat().st_size
    except Exception as error:  # numpy's parser of the header raises many things
        raise InputError(f"{path}: no array of numpy ({one_line(error) or type(error).__name__}){advice}") from error
    if found != np.dtype(dtype) or (by_columns and len(shape) > 1):
        raise InputError(
            f"{path}: holds {one_line(found, 60)}{' by columns' if by_columns else ''}, not {np.dtype(dtype)}{advice}"
        )
    if tuple(found_shape) != tuple(shape):
        raise InputError(f"{path}: its shape is {one_line(found_shape, 60)}, not {shape}{advice}")
    expected = start + int(np.prod(shape)) * found.itemsize
    if size != expected:
        raise InputError(f"{path}: has {size} bytes, but such an array has {expected}{advice}")
    return start


def read_array(path: Path, dtype: str, shape: tuple[int, ...], remedy: str = "") -> NDArray[Any]:
    """Reads an array, see ``check_array``.

    Returns:
        ``shape`` of ``dtype``; all numbers are finite.

    Raises:
        InputError: it is something else, or holds what is no number.
    """
    start = check_array(path, dtype, shape, remedy)
    values = np.fromfile(path, dtype, offset=start).reshape(shape)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds values that are not finite{f'; {remedy}' if remedy else ''}")
    return values

"""Arrays in .npz files: what a header claims is checked before it is given memory."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.runtime.bundle.errors import MALFORMED
from numpy.typing import NDArray

# what reading a file that is none can raise, beside OSError
DAMAGED = (
    *(*MALFORMED, EOFError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, RuntimeError, OverflowError),  # another method, a password
)
_SUFFIX = ".npy"


def packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A file of arrays, as `read_arrays` takes it. Raises TypeError for what holds no numbers."""
    for name, array in arrays.items():
        if not _is_plain(array.dtype):
            raise TypeError(f"{name} holds {array.dtype}")
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as file:
                np.save(file, array, allow_pickle=False)
    return made.getvalue()


def read_arrays(path: Path, most: int) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name: numbers or truths, at most `most` bytes together.

    Raises OSError, or one of DAMAGED.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(_SUFFIX)]
        left = most
        for name in names:
            with archive.open(name) as file:
                left -= _claimed(file)
            if left < 0:
                raise ValueError(f"it claims to hold more than {most >> 20} MiB")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in (name.removesuffix(_SUFFIX) for name in names)}


def _claimed(file: Any) -> int:
    """Bytes of an array by its header. Raises ValueError for what holds no numbers."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if not _is_plain(dtype):
        raise ValueError(f"it holds {dtype}")
    count = 1
    for length in shape:
        count *= length
    if count < 0:
        raise ValueError(f"it holds {count} numbers")
    return count * dtype.itemsize


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Numbers or truths, of a type that every numpy knows."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8

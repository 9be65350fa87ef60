"""Tensors of ONNX Runtime that live longer than a call, on the host or on a GPU.

A `Buffer` is bound by its address, so that some of its rows can be bound alone: whoever binds it
keeps it for as long as the binding is run. What a row holds is moved and zeroed where it lies: on
the host through numpy, on a GPU by its own copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime as ort
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.bundle.errors import ResourceError
from numpy.typing import DTypeLike, NDArray


class Memory:
    """Where buffers come from. `device` is cpu or cuda."""

    def __init__(self, device: str) -> None:
        self.device = device

    @cached_property
    def cuda(self) -> CudaDevice:
        """Copies and zeros on the GPU; made when first needed."""
        return CudaDevice()

    def allocate(self, shape: Sequence[int], dtype: DTypeLike) -> "Buffer":
        """A zeroed buffer. Raises ResourceError if there is no memory for it."""
        try:
            value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, self.device, 0)
        except Exception as error:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raise ResourceError(
                f"cannot allocate {size / 1e6:.0f} MB on {self.device} ({error}). "
                "Use fewer rows or a shorter context."
            ) from error
        buffer = Buffer(self, value, tuple(shape), np.dtype(dtype))
        buffer.clear()
        return buffer

    def close(self) -> None:
        """Let go of the GPU's stream, if one was made."""
        if "cuda" in self.__dict__:
            self.cuda.close()


@dataclass(frozen=True)
class Rows:
    """Some rows of a buffer, as a binding takes them."""

    device: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    address: int

    def as_input(self, binding: Any, name: str) -> None:
        """Bind as an input of a run."""
        where = self.device, 0, self.dtype, self.shape, self.address
        binding.bind_input(name, *where)

    def as_output(self, binding: Any, name: str) -> None:
        """Bind as an output of a run; the same rows as input make it one in place."""
        where = self.device, 0, self.dtype, self.shape, self.address
        binding.bind_output(name, *where)


class Buffer:
    """One tensor [rows, ...]."""

    def __init__(
        self, memory: Memory, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._memory, self._value = memory, value
        self._on_host = memory.device == "cpu"
        self.shape, self.dtype = shape, dtype
        self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        self._address = int(value.data_ptr())

    def rows(self, first: int, count: int) -> Rows:
        """`count` rows from `first` on."""
        address = self._address + first * self._row_bytes
        return Rows(self._memory.device, self.dtype, (count, *self.shape[1:]), address)

    def as_input(self, binding: Any, name: str) -> None:
        """Bind all rows as an input."""
        self.rows(0, self.shape[0]).as_input(binding, name)

    def as_output(self, binding: Any, name: str) -> None:
        """Bind all rows as an output."""
        self.rows(0, self.shape[0]).as_output(binding, name)

    def read(self) -> NDArray[Any]:
        """The content: on the host a view, that the next run changes."""
        return self._value.numpy()

    def write(self, array: NDArray[Any]) -> None:
        """Fill the whole tensor."""
        if self._on_host:
            self._value.numpy()[...] = array
        else:
            self._value.update_inplace(np.ascontiguousarray(array, self.dtype))

    def clear(self) -> None:
        """Zero all of it."""
        if self._on_host:
            self._value.numpy()[...] = 0
        else:
            self._memory.cuda.zero(self._address, self.shape[0] * self._row_bytes)
            self._memory.cuda.synchronize()

    def zero(self, row: int, first: int, last: int) -> None:
        """Of a cache [B, H, S, D], zero positions first to last of a row."""
        if self._on_host:
            self._value.numpy()[row, :, first:last] = 0
            return
        width = (last - first) * self._position_bytes
        at = self._place(row, first)
        self._memory.cuda.zero_strided(at, self._head_bytes, width, self.shape[1])
        self._memory.cuda.synchronize()

    def copy_row(self, source: int, target: int, length: int, other: "Buffer") -> None:
        """Of a cache, row `target` takes `length` positions of row `source` of `other`."""
        if self._on_host:
            self._value.numpy()[target, :, :length] = other._value.numpy()[source, :, :length]
            return
        if length == 0:
            return
        to = self._place(target, 0), self._head_bytes
        start = other._place(source, 0), other._head_bytes
        width = length * self._position_bytes
        self._memory.cuda.copy_strided(*to, *start, width, self.shape[1])
        self._memory.cuda.synchronize()

    @property
    def _position_bytes(self) -> int:
        return self.shape[3] * self.dtype.itemsize

    @property
    def _head_bytes(self) -> int:
        return self.shape[2] * self._position_bytes

    def _place(self, row: int, position: int) -> int:
        """Address of a position of a row, in its first head."""
        return self._address + row * self._row_bytes + position * self._position_bytes

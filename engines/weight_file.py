"""A data file: the tensors of graphs end to end, each where a reader can map it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.components import bare
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import FileSpec
from numpy.typing import NDArray
from onnx import TensorProto

ALIGNMENT = 4096  # bytes
_PART = 1 << 24  # bytes that are compared at a time
Place = tuple[int, int]  # offset, length


@dataclass(frozen=True)
class Stored:
    """A tensor's data, as arrays that follow one another in memory order."""

    name: str
    parts: Iterable[NDArray]


class WeightFile:
    """A data file while it is written, for one graph or for several that share weights.

    A tensor that an earlier graph has, too, by its name and its content, lies in it once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest, self._position = hashlib.sha256(), 0
        self._held: dict[str, Place] = {}  # of the graphs before: bare name -> place

    def __enter__(self) -> "WeightFile":
        self._file = self.path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def spec(self) -> FileSpec:
        """Its hash and size, as far as it is written."""
        return FileSpec(self._digest.hexdigest(), self._position)

    def write(self, tensors: Iterable[Stored]) -> dict[str, Place]:
        """Stream the tensors of a graph into it; returns their places."""
        places = {}
        for tensor in tensors:
            digest, position = self._digest.copy(), self._position
            place = self._append(tensor.parts)
            held = self._held.get(bare(tensor.name))
            if held is not None and self._equal(held, place):
                self._digest, self._position, place = digest, position, held
                self._file.truncate(position)
            self._file.seek(self._position)
            places[tensor.name] = place
        for name, place in places.items():
            self._held.setdefault(bare(name), place)
        self._file.flush()
        return places

    def _append(self, parts: Iterable[NDArray]) -> Place:
        start = -(-self._position // ALIGNMENT) * ALIGNMENT
        self._put(bytes(start - self._position))
        for part in parts:
            self._put(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return start, self._position - start

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)

    def _equal(self, one: Place, other: Place) -> bool:
        """Whether the same bytes lie at two places."""
        (first, length), (second, size) = one, other
        if length != size:
            return False
        for at in range(0, length, _PART):
            count = min(_PART, length - at)
            if self._read(first + at, count) != self._read(second + at, count):
                return False
        return True

    def _read(self, start: int, count: int) -> bytes:
        self._file.seek(start)
        return self._file.read(count)


def point_to(model: onnx.ModelProto, file: str, places: Mapping[str, Place]) -> None:
    """Let the graph's initializers lie in a data file."""
    for tensor in model.graph.initializer:
        if tensor.name in places:
            offset, length = places[tensor.name]
            tensor.data_location = TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in (("location", file), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))


def is_external(tensor: TensorProto) -> bool:
    """Whether its data lies in the data file; small constants stay in the graph."""
    return tensor.data_location == TensorProto.EXTERNAL


def map_tensor(tensor: TensorProto, path: Path) -> NDArray:
    """The data of an external initializer, mapped. int4 comes as bytes, two codes in each."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(entries.get("offset", 0)), int(entries["length"])
    if offset + length > path.stat().st_size:
        raise InputError(f"{path} ends before the data of {tensor.name}. Copy the bundle again.")
    data = np.memmap(path, np.uint8, "r", offset=offset, shape=(length,))
    if tensor.data_type == TensorProto.INT4:
        return data
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return data.view(dtype).reshape(tuple(tensor.dims))


def int4_columns(
    stored: NDArray[np.uint8], shape: tuple[int, int], start: int, stop: int
) -> NDArray[np.uint8]:
    """Columns from `start` (even) to `stop` of int4 codes [K, N], from two a byte to one."""
    rows, columns = shape
    if columns % 2:  # a row does not begin at a byte
        flat = np.stack([stored & 15, stored >> 4], axis=-1).reshape(-1)
        return flat[: rows * columns].reshape(rows, -1)[:, start:stop]
    pairs = stored.reshape(rows, columns // 2)[:, start // 2 : -(-stop // 2)]
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, -1)

"""The data file of a piece: its tensors end to end, each where a reader can map it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import FileSpec
from numpy.typing import NDArray
from onnx import TensorProto

ALIGNMENT = 4096  # bytes
Place = tuple[int, int]  # offset, length


@dataclass(frozen=True)
class Stored:
    """A tensor's data, as arrays that follow one another in memory order."""

    name: str
    parts: Iterable[NDArray]


def write_weights(
    path: Path, tensors: Iterable[Stored], on_write: Callable[[int], None] = lambda _: None
) -> tuple[FileSpec, dict[str, Place]]:
    """Stream tensors into a file; `on_write` hears of bytes. Returns its hash, and the places."""
    digest, position, places = hashlib.sha256(), 0, {}
    with path.open("wb") as file:
        for tensor in tensors:
            start = -(-position // ALIGNMENT) * ALIGNMENT
            gap = bytes(start - position)
            file.write(gap)
            digest.update(gap)
            position = start
            for part in tensor.parts:
                data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                file.write(data)
                digest.update(data)
                position += len(data)
                on_write(len(data))
            places[tensor.name] = (start, position - start)
    return FileSpec(digest.hexdigest(), position), places


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

"""Streaming of weights: from the checkpoint's files into the data files of pieces.

One slice of one tensor is in memory at a time, whatever the size of the model.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
import torch
from mimo_edge.export.finite import check_finite
from mimo_edge.mimo_ref.errors import CheckpointError
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.runtime.bundle.dtypes import DTYPES, PRECISIONS
from torch import Tensor

SLICE_BYTES = 64 << 20  # how much of a tensor is converted at a time
ALIGNMENT = 4096  # so that a reader can map each tensor
TORCH_DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType[dtype.onnx]: getattr(torch, dtype.name) for dtype in DTYPES.values()
}
STORED_DTYPES: dict[str, torch.dtype] = {
    dtype.safetensors: getattr(torch, dtype.name) for dtype in PRECISIONS.values()
}


@dataclass(frozen=True)
class Region:
    """Where one initializer's data goes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    bytes: int
    transposed: bool

    @property
    def numbers(self) -> int:
        return self.bytes // self.dtype.itemsize


def plan_regions(model: ir.Model, transposed: set[str]) -> list[Region]:
    """Lay the initializers that have no data end to end."""
    regions, offset = [], 0
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue  # a folded constant, small: it stays in the graph
        assert value.dtype is not None and value.shape is not None
        dtype, shape = TORCH_DTYPES[value.dtype], tuple(value.shape.numpy())
        size = int(np.prod(shape)) * dtype.itemsize
        regions.append(Region(name, dtype, shape, offset, size, name in transposed))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return regions


class Origins(Protocol):
    """Where the data of a graph's initializers comes from."""

    @property
    def sources(self) -> Mapping[str, str]:
        """Initializer -> its name in a checkpoint."""

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The data of those that no checkpoint has."""


class WeightReader:
    """Reads what the data file of a piece will hold, from the checkpoints in `files`."""

    def __init__(self, files: list[TensorFiles], origins: Origins) -> None:
        self.files, self.origins = files, origins

    def parts(self, region: Region, on_write: Callable[[int], None]) -> Iterator[np.ndarray]:
        """A region's data in order, as bytes; `on_write` hears of how many."""
        for part in self._slices(region):
            data = part.contiguous().view(torch.uint8).numpy()
            yield data
            on_write(len(data))

    def reader(self, region: Region) -> Callable[[int, int], np.ndarray]:
        """Rows from, to of a matrix [outputs, inputs], in float32, as the checkpoint has it."""
        path, name, tensor = self._map(region)

        def read(start: int, stop: int) -> np.ndarray:
            part = tensor[start:stop].float().contiguous()
            check_finite(part, tensor, path, name)
            return part.numpy()

        return read

    def _slices(self, region: Region) -> Iterator[Tensor]:
        """The region's data in order, flattened, in its dtype and layout."""
        constant = self.origins.constants.get(region.name)
        if constant is not None:
            yield torch.from_numpy(constant).to(region.dtype).flatten()
            return
        path, name, tensor = self._map(region)
        rows = max(1, SLICE_BYTES * region.shape[0] // max(1, region.bytes))
        for start in range(0, region.shape[0], rows):
            stop = start + rows
            part = tensor[:, start:stop].T if region.transposed else tensor[start:stop]
            part = part.to(region.dtype).contiguous()
            check_finite(part, tensor, path, name)
            yield part.flatten()

    def _map(self, region: Region) -> tuple[Path, str, Tensor]:
        """A region's file, its name there, and its data."""
        name = self.origins.sources[region.name]
        path = next(f.path_of[name] for f in self.files if name in f.path_of)
        return path, name, map_tensor(path, name)


def check_dtypes(files: TensorFiles, names: Iterable[str]) -> None:
    """Raises CheckpointError for a tensor whose dtype `map_tensor` does not read."""
    for name in names:
        dtype = files.where[name].get_slice(name).get_dtype()
        if dtype not in STORED_DTYPES:
            raise CheckpointError(
                f"{files.path_of[name]}: {name} is {dtype}; weights must be "
                f"{', '.join(STORED_DTYPES)}. Convert the checkpoint, or take the released one."
            )


def map_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, mapped alone: its pages go when the tensor goes.

    (A map of the whole file would keep every page that was read in the process's memory.)
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    start, stop = entry["data_offsets"]
    data = np.memmap(path, np.uint8, "c", offset=8 + length + start, shape=(stop - start,))
    return torch.from_numpy(data).view(STORED_DTYPES[entry["dtype"]]).view(entry["shape"])


def attach(model: ir.Model, regions: list[Region], data_file: str) -> None:
    """Let the graph's initializers point into the data file."""
    for region in regions:
        value = model.graph.initializers[region.name]
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            location=data_file,
            offset=region.offset,
            length=region.bytes,
            dtype=value.dtype,
            shape=ir.Shape(region.shape),
            name=region.name,
        )

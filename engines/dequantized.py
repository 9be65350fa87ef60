"""What the codes of a bundle stand for: its weights as the checkpoint has them, in float32."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.components import component_of
from mimo_edge.engines.quantized_graph import matrices, scales_of
from mimo_edge.engines.schemes import Floats
from mimo_edge.engines.weight_file import int4_columns, is_external, map_tensor
from mimo_edge.runtime.bundle.bundle import Bundle
from numpy.typing import NDArray
from onnx import TensorProto

_SLICE = 1 << 24  # numbers that are widened at a time


@dataclass(frozen=True)
class StoredWeight:
    """A matrix [outputs, inputs], a table [rows, width] or a vector [width] of one piece."""

    values: TensorProto
    scales: TensorProto | None  # of codes
    data: Path
    table: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """In a checkpoint."""
        dims = tuple(self.values.dims)
        return dims if self.table or len(dims) == 1 else dims[::-1]

    def rows(self) -> Iterator[Floats]:
        """All numbers in the order of a checkpoint, some rows at a time."""
        if len(self.shape) == 1:
            yield map_tensor(self.values, self.data).astype(np.float32)
            return
        outputs, inputs = self.shape
        step = max(2, _SLICE // inputs // 2 * 2)  # even: a byte of int4 is not cut in two
        for start in range(0, outputs, step):
            yield self._part(start, min(outputs, start + step))

    def _part(self, start: int, stop: int) -> Floats:
        stored = map_tensor(self.values, self.data)
        scales = None if self.scales is None else map_tensor(self.scales, self.data)
        if self.table:
            rows = stored[start:stop].astype(np.float32)
            return rows if scales is None else rows * scales[start:stop].astype(np.float32)
        packed = self.values.data_type == TensorProto.INT4
        columns = columns_of(stored, scales, self.shape[::-1], packed, slice(start, stop))
        return np.ascontiguousarray(columns.T)


def columns_of(
    stored: NDArray, scales: NDArray | None, shape: tuple[int, ...], packed: bool, part: slice
) -> Floats:
    """Outputs of a layer [K, N] as numbers [K, n]. Scales are [N] or [blocks of K, N]; where int4
    is packed two in a byte, `part` begins at an even output."""
    inputs, outputs = shape
    if packed:
        codes = int4_columns(stored, (inputs, outputs), part.start, part.stop)
        columns = (codes ^ 8).astype(np.float32) - 8  # two's complement of four bits
    else:
        columns = stored[:, part].astype(np.float32)
    if scales is not None:
        own = scales.reshape(-1, outputs)[:, part].astype(np.float32)  # [blocks, n]
        shaped = columns.reshape(len(own), -1, columns.shape[1])
        shaped *= own[:, None]
    return columns


def stored_weights(bundle: Bundle) -> dict[str, StoredWeight]:
    """By their names in the graphs: every matrix and every vector that belongs to a component.

    What is neither (convolutions, codebooks) no recipe changes.
    """
    found: dict[str, StoredWeight] = {}
    for piece in bundle.manifest.pieces:
        model = onnx.load(bundle.path(piece), load_external_data=False)
        data = bundle.folder / bundle.piece(piece).data
        held = {t.name: t for t in model.graph.initializer if is_external(t)}
        floats = matrices(model)
        gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
        for name, tensor in held.items():
            scales = held.get(scales_of(name))
            matrix = len(tensor.dims) == 2 and (scales is not None or name in floats)
            if component_of(name) is not None and (matrix or len(tensor.dims) == 1):
                found.setdefault(name, StoredWeight(tensor, scales, data, name in gathered))
    return found

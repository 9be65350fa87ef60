"""A traced piece: its graph, and where the data of each initializer comes from. No weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from mimo_edge.export.graph import count_axes_from_the_front, lay_out_weights, simplify
from mimo_edge.export.piece import Port
from mimo_edge.export.pieces import Pieces
from mimo_edge.export.trace import trace
from mimo_edge.export.weights import Region, attach, plan_regions
from mimo_edge.runtime.bundle.data_files import data_file


@dataclass(frozen=True)
class TracedPiece:
    """What a process that traces sends to the one that writes the bundle."""

    graph: bytes  # a ModelProto whose initializers will lie in `data_file`
    regions: list[Region]  # of the initializers that have no data yet
    sources: Mapping[str, str]  # initializer -> name in a checkpoint
    constants: Mapping[str, np.ndarray]  # those that no checkpoint has
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def traced_piece(pieces: Pieces, name: str) -> TracedPiece:
    """Trace a piece and lay out its graph for its weights."""
    piece, model = trace(lambda: pieces.build(name))
    simplify(model)
    count_axes_from_the_front(model)
    regions = plan_regions(model, lay_out_weights(model))
    attach(model, regions, data_file(name))
    stored = [region.name for region in regions]
    return TracedPiece(
        ir.to_proto(model).SerializeToString(deterministic=True),
        regions,
        {n: piece.source(n) for n in stored if n not in piece.constants},
        {n: piece.constants[n]() for n in stored if n in piece.constants},
        piece.inputs,
        piece.outputs,
    )

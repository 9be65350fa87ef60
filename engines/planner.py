"""What a build will take, before it begins: simple proportions, fitted to measured builds.

    engine = weights, however many compute capabilities it is for
    memory = MEMORY_BASE + MEMORY_PER_BYTE * weights
    time   = SECONDS_PER_GB * weights + SECONDS_PER_NODE * nodes of the graph

The measurements are in docs/tensorrt.md. They are of ahead-of-time builds on two cores; classic
TensorRT also tries kernels on the GPU, which takes minutes more.
"""

from dataclasses import dataclass

import onnx
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.manifest import PIECES

MEMORY_BASE = 0.3e9  # bytes
MEMORY_PER_BYTE = 3.1
SECONDS_PER_GB = 10.0
SECONDS_PER_NODE = 0.008


@dataclass(frozen=True)
class Estimate:
    """What is to come for one piece."""

    piece: str
    weight_bytes: int
    engine_bytes: int
    memory_bytes: int
    seconds: float


def estimate(bundle: Bundle) -> list[Estimate]:
    """Size, memory and time of each piece, in the order in which they are built."""
    result = []
    for piece in PIECES:
        graph = onnx.load(bundle.path(piece), load_external_data=False).graph
        result.append(estimate_piece(piece, bundle.weight_bytes(piece), len(graph.node)))
    return result


def estimate_piece(piece: str, weights: int, nodes: int) -> Estimate:
    """Of a graph with so many bytes of weights and so many nodes."""
    memory = int(MEMORY_BASE + MEMORY_PER_BYTE * weights)
    seconds = SECONDS_PER_GB * weights / 1e9 + SECONDS_PER_NODE * nodes
    return Estimate(piece, weights, weights, memory, seconds)

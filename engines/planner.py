"""What a build will take, before it begins: simple proportions, fitted to measured builds.

    engine = weights, however many compute capabilities it is for
    memory = MEMORY_BASE + MEMORY_PER_BYTE * weights
    time   = SECONDS_BASE + SECONDS_PER_GB * weights

The measurements are in docs/tensorrt.md. They are of ahead-of-time builds on two cores; classic
TensorRT also tries kernels on the GPU, which takes minutes more.
"""

from dataclasses import dataclass

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.manifest import PIECES

MEMORY_BASE = 0.3e9  # bytes
MEMORY_PER_BYTE = 3.1
SECONDS_BASE = 1.0
SECONDS_PER_GB = 9.0


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
        weights = bundle.weights(piece).bytes
        memory, seconds = MEMORY_PER_BYTE * weights, SECONDS_PER_GB * weights / 1e9
        result.append(
            Estimate(piece, weights, weights, int(MEMORY_BASE + memory), SECONDS_BASE + seconds)
        )
    return result

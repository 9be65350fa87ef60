"""G.711, the sound of telephones: 8 bits a sample, 8 kHz; A-law and µ-law.

Each code is a level; a sample becomes the code of the nearest one.
"""

import numpy as np
from mimo_edge.runtime.backends.base import Floats

RATE = 8000


def _mu_levels() -> np.ndarray:
    code = ~np.arange(256, dtype=np.uint8)
    size = (((code & 15).astype(int) << 3) + 132 << ((code >> 4) & 7)) - 132
    return np.where(code & 128, -size, size)


def _a_levels() -> np.ndarray:
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    segment, step = ((code >> 4) & 7).astype(int), (code & 15).astype(int) << 4
    size = np.where(segment == 0, step + 8, step + 264 << np.maximum(segment - 1, 0))
    return np.where(code & 128, size, -size)


class G711:
    """One of its two laws. Levels are of 16 bits."""

    def __init__(self, levels: np.ndarray) -> None:
        self._levels = (levels / 32768).astype(np.float32)
        self._order = np.argsort(levels, kind="stable").astype(np.uint8)
        sorted_levels = self._levels[self._order]
        self._edges = (sorted_levels[:-1] + sorted_levels[1:]) / 2

    def decode(self, data: bytes) -> Floats:
        """bytes [N] -> wav [N] at 8 kHz"""
        return self._levels[np.frombuffer(data, np.uint8)]

    def encode(self, wav: Floats) -> bytes:
        """wav [N] at 8 kHz -> bytes [N]"""
        return self._order[np.searchsorted(self._edges, wav)].tobytes()


LAWS = {"audio/pcmu": G711(_mu_levels()), "audio/pcma": G711(_a_levels())}

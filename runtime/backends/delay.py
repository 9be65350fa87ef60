"""The delay pattern between the numbers of a patch and those of the patch decoder's sub-steps.

Codebook k of frame g belongs to sub-step g + delays[k]. What is no frame's at a sub-step does not
count there: the graph takes any uniform number for it, and its code is not read.
"""

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.manifest import ModelSpec


class DelayPattern:
    """Moves patches [rows, G, K] to sub-steps [S, rows, K] and back."""

    def __init__(self, model: ModelSpec) -> None:
        delays = np.array(model.delays)
        frames = np.arange(model.sub_steps)[:, None] - delays
        self._frames = frames.clip(0, model.group_size - 1)  # [S, K]
        self._steps = np.arange(model.group_size)[:, None] + delays  # [G, K]
        self._codebooks = np.arange(model.n_q)

    def spread(self, uniforms: Floats) -> Floats:
        """What each sub-step needs of uniforms [rows, G, K]: [S, rows, K]"""
        return np.ascontiguousarray(uniforms[:, self._frames, self._codebooks].swapaxes(0, 1))

    def collect(self, codes: Ints) -> Ints:
        """The patches [rows, G, K] that the sub-steps' codes [S, rows, K] hold."""
        return np.ascontiguousarray(codes.swapaxes(0, 1)[:, self._steps, self._codebooks])

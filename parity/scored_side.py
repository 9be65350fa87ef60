"""A bundle as the side that others are held against: it also tells the scores of its codes, by
which near ties are known."""

from dataclasses import replace

from mimo_edge.parity.bundle_side import BundleSide
from mimo_edge.parity.forced import LedBundle, Recorded
from mimo_edge.parity.recording import Sequence
from mimo_edge.parity.side import Forced
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.request import split_grid


class ScoredBundleSide(BundleSide):
    """See `BundleSide`. Reads the graph of the patch decoder, so onnx is needed."""

    def __init__(self, backend: OrtBackend, threads: int | None = None) -> None:
        super().__init__(backend)
        self._led = LedBundle(backend.bundle, threads)

    def forced(self, grid: Grid, sequence: Sequence) -> Forced:
        text_ids, codes = split_grid(grid, self.layout.group_size)
        recorded = Recorded(text_ids, codes, sequence.prompt)
        (scores,) = self._led.along([recorded], self.layout.empty_id).scores
        return replace(super().forced(grid, sequence), scores=scores)

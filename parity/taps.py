"""Inner states of a bundle's pieces on ONNX Runtime."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from mimo_edge.parity.tap import Feed, Tap, given_of, output_of
from mimo_edge.parity.tapped_graph import TappedGraph
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.backends.ort import OrtBackend


class TappedPiece:
    """One piece of a bundle on ONNX Runtime, with its inner states to be asked for."""

    def __init__(self, backend: OrtBackend, piece: str) -> None:
        bundle = backend.bundle
        self._backend, self.piece = backend, piece
        self.graph = TappedGraph(piece, bundle.path(piece), bundle.model.n_q)

    @property
    def taps(self) -> list[Tap]:
        """As `TappedGraph.taps`."""
        return self.graph.taps

    def run(self, taps: Sequence[Tap], feed: Feed) -> tuple[dict[str, Floats], Feed]:
        return self._run(self.graph.with_outputs(taps), taps, feed)

    def resume(self, start: Tap, value: Floats, end: Tap, feed: Feed) -> Floats:
        """What `end` is if the state at `start` is `value`: the segment between them alone."""
        given = {**feed, given_of(start): value.astype(np.float32)}
        values, _ = self._run(self.graph.segment(start, end), [end], given)
        return values[end.name]

    def session(self, taps: Iterable[Tap]) -> ort.InferenceSession:
        """The piece with these values as outputs beside its own, named by `output_of`."""
        return self._open(self.graph.with_outputs(taps))

    def _open(self, model: onnx.ModelProto) -> ort.InferenceSession:
        return self._backend.open_graph(self.piece, model.SerializeToString())

    def _run(
        self, model: onnx.ModelProto, taps: Sequence[Tap], feed: Feed
    ) -> tuple[dict[str, Floats], Feed]:
        session = self._open(model)
        names = [port.name for port in session.get_outputs()]
        wanted = {port.name for port in session.get_inputs()}
        given = {name: array for name, array in feed.items() if name in wanted}
        outputs = dict(zip(names, session.run(names, given), strict=True))
        return {tap.name: outputs.pop(output_of(tap.name)) for tap in taps}, outputs

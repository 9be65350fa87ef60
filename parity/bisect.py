"""Where it broke: a bundle against the reference layer by layer, within a memory budget.

Every piece gets the reference's own inputs. Its states are compared at each tap in the order of
computing, some at a time so that the budget holds; the first out of tolerance ends it. Then the
segment before it runs alone on the reference's state: what is wrong then was born there, else it
has arrived from before and grown.
"""

from mimo_edge.parity.bisect_jobs import jobs
from mimo_edge.parity.findings import Bisected, Finding, Layer
from mimo_edge.parity.job import Job
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.tap import Tap
from mimo_edge.parity.taps import TappedPiece
from mimo_edge.parity.tolerances import worst_snr
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.backends.ort import OrtBackend

BUDGET = 256 << 20  # bytes of states held at once


class Bisection:
    """Compares a bundle on ONNX Runtime with the reference, on the inputs of a recording."""

    def __init__(
        self,
        side: ReferenceSide,
        backend: OrtBackend,
        led: Recording,
        allowed: float,
        budget: int = BUDGET,
    ) -> None:
        self._side, self._backend, self._led = side, backend, led
        self._allowed, self._budget = allowed, budget
        self._layers: list[Layer] = []

    def run(self) -> Bisected:
        """The first tap out of tolerance of every stage, and all that was seen until then."""
        found = []
        for job in jobs(self._side, self._backend.bundle, self._led):
            finding = self._first(job, TappedPiece(self._backend, job.piece))
            if finding is not None:
                found.append(finding)
        return Bisected(tuple(found), tuple(self._layers))

    def _first(self, job: Job, piece: TappedPiece) -> Finding | None:
        before: Tap | None = None
        states: list[Floats] = []  # the reference's, at `before`
        left, together = piece.taps, 1
        while left:
            group, left = left[:together], left[together:]
            theirs = job.reference([*job.needs, *(tap.name for tap in group)])
            mine, feed = job.play(piece, group, theirs)
            for tap in group:
                near = worst_snr(mine[tap.name], theirs[tap.name])
                self._layers.append(Layer(job.stage, tap.name, near, self._allowed))
                if near < self._allowed:
                    alone = None
                    if before is not None and mine[tap.name]:
                        state = states[job.first_run(tap.name)]
                        again = piece.resume(before, state, tap, feed)
                        alone = worst_snr([again], theirs[tap.name][:1])
                    return Finding(
                        job.stage,
                        tap.name,
                        None if before is None else before.name,
                        near,
                        self._allowed,
                        alone,
                        tuple(piece.graph.weights_between(before, tap)),
                    )
                if tap.is_norm:  # from an output nothing goes on
                    before, states = tap, theirs[tap.name]
            held = max(sum(a.nbytes for a in theirs[tap.name]) for tap in group)
            together = max(1, self._budget // max(1, 2 * held))
        return None

"""How much of the tracing is done, with what is being traced."""

import time
from collections.abc import Mapping
from threading import Lock


class TracingShare:
    """A tracer says nothing while it works. What it is at is taken to go on at the speed of what
    has been traced, beginning to end, in this run."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        self._costs, self._lock = costs, Lock()
        self._cost = self._seconds = 0.0  # of all that is traced
        self._begun: dict[str, float] = {}  # piece -> when
        self._traced: set[str] = set()

    def hear(self, piece: str, traced: bool) -> None:
        """A piece is begun, or traced; from any thread."""
        with self._lock:
            if not traced:
                self._begun[piece] = time.monotonic()
                return
            self._traced.add(piece)
            self._cost += self._costs[piece]
            self._seconds += time.monotonic() - self._begun[piece]

    def part(self, piece: str) -> float:
        """Of a piece, of 1."""
        with self._lock:
            if piece in self._traced:
                return 1.0
            if piece not in self._begun or not self._seconds:
                return 0.0
            speed = self._cost / self._seconds
            passed = time.monotonic() - self._begun[piece]
            return min(1.0, passed * speed / self._costs[piece])

"""What /metrics tells Prometheus."""

import time
from collections.abc import Callable

from mimo_edge.runtime.audio.player import Player
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

_FIRST_AUDIO = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_FACTOR = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 4, 8)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "mimo_requests", "HTTP requests answered", ["endpoint", "status"], registry=registry
        )
        self.cancellations = Counter(
            "mimo_cancellations", "Requests whose client left, or cancelled", registry=registry
        )
        self.first_audio = Histogram(
            "mimo_time_to_first_audio_seconds",
            "From the admission of a request to its first sound",
            buckets=_FIRST_AUDIO,
            registry=registry,
        )
        self.real_time_factor = Histogram(
            "mimo_real_time_factor",
            "Seconds of work for a second of speech; below 1 is faster than real time",
            buckets=_FACTOR,
            registry=registry,
        )
        self.underruns = Counter(
            "mimo_underruns", "Times that a listener would have heard a gap", registry=registry
        )
        self.silence = Counter("mimo_underrun_seconds", "Seconds of such gaps", registry=registry)
        self.audio = Counter("mimo_audio_seconds", "Seconds of speech made", registry=registry)
        self.patches = Counter("mimo_patches", "Patches generated", registry=registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def answer_heard(self) -> "Heard":
        """Follow one answer."""
        return Heard(self)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)


class Heard:
    """One answer as its listener has it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._player = metrics, Player(time.perf_counter())
        self._seconds = 0.0

    def sound(self, seconds: float) -> None:
        """A piece of sound has come."""
        first = self._player.first_sound is None
        self._player.give(time.perf_counter(), seconds)
        self._seconds += seconds
        if first and self._player.time_to_first_sound is not None:
            self._metrics.first_audio.observe(self._player.time_to_first_sound)

    def end(self, patches: int) -> None:
        """The answer is whole."""
        metrics = self._metrics
        metrics.patches.inc(patches)
        metrics.underruns.inc(len(self._player.underruns))
        metrics.silence.inc(self._player.silence)
        metrics.audio.inc(self._seconds)
        if self._seconds:
            took = time.perf_counter() - self._player.started
            metrics.real_time_factor.observe(took / self._seconds)

"""What all endpoints share: the model, who is let in, and the threads that wait for answers."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.bundle.errors import MimoError
from mimo_edge.runtime.chat.prompts import PromptBuilder
from mimo_edge.runtime.generation.generation import chunks_of
from mimo_edge.runtime.server.errors import GoneError, RequestError
from mimo_edge.runtime.server.limits import Limits, free_memory
from mimo_edge.runtime.server.metrics import Metrics
from mimo_edge.runtime.server.spoken import SpokenAnswers
from mimo_edge.runtime.server.voices import Voices
from mimo_edge.runtime.tasks import MimoAudio

log = logging.getLogger("mimo_edge.server")


@dataclass(frozen=True)
class Streaming:
    """How answers are streamed: see `Generation.stream`."""

    kind: str | None = None
    chunk: int | None = None
    lookahead: int | None = None
    left: int | None = None
    right: int | None = None


class Cancellable(Protocol):
    """Work that can be ended."""

    def cancel(self, reason: Exception) -> None:
        """Soon; whoever reads gets the reason."""


class Service:
    """One model for all endpoints. `name` is what clients call it."""

    def __init__(
        self,
        model: MimoAudio,
        voices: Voices,
        *,
        name: str,
        limits: Limits,
        streaming: Streaming,
    ) -> None:
        self._pieces = _pieces(model, streaming)
        # what callers write is theirs: a special token in it is text
        model.prompts = PromptBuilder(model.tokenizer, model.layout, special=False)
        self.model, self.voices, self.name = model, voices, name
        self.limits, self.streaming = limits, streaming
        self.metrics, self.spoken = Metrics(), SpokenAnswers()
        self.capacity = model.scheduler.slots + limits.queue
        self.pool = ThreadPoolExecutor(self.capacity, "mimo-edge answer")
        self.draining = False
        self.works: set[Cancellable] = set()  # what the pool works for
        self.open = 0  # requests that have been let in
        self.sessions = 0  # realtime connections; only the event loop changes it
        self._lock = threading.Lock()
        self._loaded, self._failed = False, ""
        self._watch()

    def load(self) -> None:
        """Load every piece, so that the first caller does not wait for it."""
        try:
            self.model.scheduler.load(self._pieces)
            self._loaded = True
        except MimoError as error:  # the server stays, and says why it cannot serve
            log.error("%s", error)
            self._failed = str(error)

    def why_not(self) -> str | None:
        """Why no new work is taken, or None."""
        if self.draining:
            return "the server is shutting down"
        if (reason := self.broken()) is not None:
            return reason
        if not self._loaded:
            return "the model is being loaded"
        free = free_memory()
        if free is not None and free < self.limits.free_memory:
            return f"only {free >> 20} MiB of memory are free"
        return None

    def broken(self) -> str | None:
        """Why this process will never serve again, or None."""
        if self.model.scheduler.closed:
            return "the model has failed or was closed; start the server again"
        return self._failed or None

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among those that are served or wait. Raises RequestError if there is none."""
        reason = self.why_not()
        if reason is not None:
            raise RequestError(
                f"No new work is taken: {reason}.", status=503, code="not_ready", retry_after=5
            )
        with self._lock:
            if self.open >= self.capacity:
                raise RequestError(
                    f"{self.open} requests are open, for {self.model.scheduler.slots} slots and a "
                    f"queue of {self.limits.queue}; try again later.",
                    status=429,
                    code="busy",
                    retry_after=1 + self.limits.queue // (4 * self.model.scheduler.slots),
                )
            self.open += 1
        try:
            yield
        finally:
            with self._lock:
                self.open -= 1

    def close(self) -> None:
        """End what still works for somebody, and wait for the threads; the model stays open."""
        for work in [*self.works]:
            work.cancel(GoneError())
        self.pool.shutdown()

    def _watch(self) -> None:
        scheduler = self.model.scheduler
        self.metrics.watch("mimo_slots", "Answers at a time", lambda: scheduler.slots)
        self.metrics.watch("mimo_slots_busy", "Slots that are taken", lambda: scheduler.busy)
        self.metrics.watch("mimo_queue", "Answers waiting for a slot", lambda: scheduler.waiting)
        self.metrics.watch("mimo_open_requests", "Requests let in", lambda: self.open)
        self.metrics.watch(
            "mimo_realtime_sessions", "Realtime connections that are open", lambda: self.sessions
        )
        self.metrics.watch(
            "mimo_reused_patches", "Patches of prompts not computed again", lambda: scheduler.reused
        )


def _pieces(model: MimoAudio, streaming: Streaming) -> tuple[str, ...]:
    """What the server runs. Raises InputError for a stream that cannot be."""
    pieces = ("mel", "tokenizer_encoder", "patch_encoder", "backbone")
    if not model.backend.bundle.speaks:
        return pieces
    kind = codec.stream_kind(streaming.kind, streaming.left, streaming.right)
    chunks_of(kind, streaming.chunk, streaming.left, model.layout.group_size)
    codec.open_stream(
        model.scheduler.audio,
        kind,
        left=streaming.left,
        right=streaming.right,
        lookahead=streaming.lookahead,
    ).close()
    decoding = dict.fromkeys(("tokenizer_decoder", *codec.stream_pieces(kind)))
    return (*pieces, "patch_decoder", *decoding)

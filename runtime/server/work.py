"""The bridge: what a thread generates, read by asyncio.

    async with working(service, produce) as work:
        async for item in work:
            ...

`produce(work)` runs in a thread, an iterator of what the client gets. It generates through
`work.stream` and `work.result`, so that `work.cancel` ends it within one patch.
"""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from mimo_edge.runtime.generation.generation import Event, Generation, Result, Started
from mimo_edge.runtime.generation.scheduler import Handle
from mimo_edge.runtime.server.errors import GoneError
from mimo_edge.runtime.server.service import Service

AHEAD = 16  # items that may wait for a client that reads slowly

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@asynccontextmanager
async def working(
    service: Service, produce: Callable[["Work[T]"], Iterator[T]]
) -> AsyncIterator["Work[T]"]:
    """Admit a request, do its work, and leave nothing of it behind however its reader ends.

    Raises RequestError if there is no place for it.
    """
    with service.admitted():
        work = Work(service, produce)
        try:
            yield work
        finally:
            work.cancel(GoneError())
            await work.finished()


class Work(Generic[T]):
    """One request's work. Made inside a running event loop; for one reader."""

    def __init__(self, service: Service, produce: Callable[["Work[T]"], Iterator[T]]) -> None:
        self._service, self._produce = service, produce
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | _End] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._lock = threading.Lock()
        self._handles: list[Handle] = []
        self._reason: Exception | None = None
        self._interrupted = False
        service.works.add(self)
        self._done = asyncio.wrap_future(service.pool.submit(self._run))

    async def __aiter__(self) -> AsyncIterator[T]:
        while not isinstance(item := await self._items.get(), _End):
            self._room.release()
            yield item
        if item.error is not None:
            raise item.error

    def cancel(self, reason: Exception) -> None:
        """End it; whoever reads gets `reason`."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            handles = [*self._handles]
        for handle in handles:
            handle.cancel(reason)
        self._room.release()  # who waits for room sees it

    def interrupt(self) -> None:
        """Let the answers end where they are, and those not begun at once: `produce` goes on with
        what there is."""
        with self._lock:
            self._interrupted = True
            handles = [*self._handles]
        for handle in handles:
            handle.cancel()

    async def finished(self) -> None:
        """Wait until the thread is free again."""
        await asyncio.shield(self._done)

    def stream(self, generation: Generation) -> Iterator[Event]:
        """In the thread: an answer as it comes."""
        heard, how = self._service.metrics.answer_heard(), self._service.streaming
        rate = self._service.model.sampling_rate
        started = self._start(generation)
        for event in generation.stream(started, **dataclasses.asdict(how)):
            self.check()
            if len(event.wav):
                heard.sound(len(event.wav) / rate)
            if event.result is not None:
                heard.end(event.result.timings.patches)
            yield event

    def result(self, generation: Generation) -> Result:
        """In the thread: a whole answer."""
        return self.results([generation])[0]

    def results(self, generations: Sequence[Generation]) -> list[Result]:
        """In the thread: whole answers, which share steps."""
        results = []
        for generation, started in [(g, self._start(g)) for g in generations]:
            heard = self._service.metrics.answer_heard()
            result = generation.result(started)
            self.check()
            heard.end(result.timings.patches)
            results.append(result)
        return results

    def check(self) -> None:
        """In the thread: raises the reason if it was cancelled."""
        if self._reason is not None:
            raise self._reason

    def _start(self, generation: Generation) -> Started:
        self.check()
        started = generation.start()
        with self._lock:
            self._handles.append(started.steps)
        if self._reason is not None or self._interrupted:  # meanwhile
            started.steps.cancel(self._reason)
        return started

    def _run(self) -> None:
        error = None
        try:
            for item in self._produce(self):
                self._room.acquire()
                self.check()
                self._put(item)
        except BaseException as failure:
            error = failure
            self._leave()
        self._service.works.discard(self)
        self._put(_End(error))

    def _leave(self) -> None:
        """Of several answers, the others are of no use."""
        with self._lock:
            handles = [*self._handles]
        for handle in handles:
            handle.cancel()

    def _put(self, item: T | _End) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self.cancel(GoneError())

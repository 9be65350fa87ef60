"""The scheduler: it alone owns backend and loop, and serves callers of any number of threads.

    scheduler = Scheduler(backend, empty_id)
    for step in scheduler.submit(request):
        ...

All work of the backend is done by one thread, which lives while there is work: between two steps of
the requests that have a slot, it lets waiting ones join, reads a piece of one prompt, and does the
jobs that callers have for the codec.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from mimo_edge.runtime.backends.base import Backend, CodecStates, Feed, Floats, Ints
from mimo_edge.runtime.bundle.errors import BusyError, InputError, MimoError, ResourceError
from mimo_edge.runtime.generation.loop import Loop
from mimo_edge.runtime.generation.request import Failure, Outcome, Request, Step

WAITING = 64  # requests that may wait for a slot
LINGER = 0.05  # seconds for which the thread waits for more work before it ends

T = TypeVar("T")


class Handle:
    """One submitted request: an iterator of its steps, which raises what makes it fail.

    For one consumer. Who stops before the end should `cancel`, or the slot stays taken.
    """

    def __init__(self, scheduler: "Scheduler", request: Request) -> None:
        self.request = request
        self._scheduler = scheduler
        self._outcomes: SimpleQueue[Step | BaseException | None] = SimpleQueue()
        self._ended = False
        self._reason: Exception | None = None

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        if self._ended:
            raise StopIteration
        outcome = self._outcomes.get()
        if self._reason is not None:
            outcome = self._reason
        if isinstance(outcome, Step):
            self._ended = outcome.last
            return outcome
        self._ended = True
        if outcome is None:
            raise StopIteration
        raise outcome

    def cancel(self, reason: Exception | None = None) -> None:
        """Leave the slot, or the queue, within a step.

        Without a reason the steps that are there already can be read; with one, the reader gets
        that in place of any further step.
        """
        self._reason = self._reason or reason
        self._scheduler._cancel(self)

    def _put(self, outcome: Step | BaseException | None) -> None:
        self._outcomes.put(outcome)


class Scheduler:
    """Requests of many callers on one backend. All methods may be called from any thread.

    `slots` requests share each step (None: what the backend says), `waiting` more may wait. `reuse`
    as in `loop.Loop`.
    """

    def __init__(
        self,
        backend: Backend,
        empty_id: int,
        slots: int | None = None,
        *,
        waiting: int = WAITING,
        reuse: bool = True,
    ) -> None:
        if slots is not None and slots < 1:
            raise InputError(f"slots must be 1 or more, not {slots}; each is an answer at a time")
        self.backend, self.slots = backend, backend.slots if slots is None else slots
        self.audio = ScheduledAudio(self, backend)
        self._empty_id, self._most, self._reuse = empty_id, waiting, reuse
        self._loop: Loop | None = None  # made at the first request
        self._changed = threading.Condition()  # guards what follows
        self._queue: deque[Handle] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._joining: Handle | None = None  # has left the queue, and has no request id yet
        self._running: dict[int, Handle] = {}  # by request id
        self._cancelled: set[Handle] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or failed itself."""
        return self._closed

    @property
    def reused(self) -> int:
        """Patches of prompts, so far, that were not computed because a slot held them already."""
        return 0 if self._loop is None else self._loop.reused

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises BusyError if too many wait already."""
        handle = Handle(self, request)
        with self._changed:
            if len(self._queue) >= self._most:
                raise BusyError(
                    f"{len(self._queue)} requests wait for {self.slots} slots already. Try again "
                    "later, or open with more slots."
                )
            self._wake()  # may refuse
            self._queue.append(handle)
        return handle

    def generate(self, request: Request) -> Iterator[Step]:
        """The steps of one answer; who stops reading them ends it."""
        handle = self.submit(request)
        try:
            yield from handle
        finally:
            handle.cancel()

    def load(self, pieces: Sequence[str]) -> None:
        """Make pieces ready, so that no later call pays for loading them."""
        self.run(lambda: self.backend.load(pieces))

    def run(self, job: Callable[[], T]) -> T:
        """Do something with the backend, between two steps. Raises what `job` raises."""
        if threading.current_thread() is self._thread:
            return job()
        result, error = self.post(job).get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def post(self, job: Callable[[], T]) -> SimpleQueue[tuple[T | None, BaseException | None]]:
        """As `run`, without waiting: what comes of it will be put into the queue.

        For what the garbage collection of a dropped stream may call too: it works in a thread that
        may have any lock, this scheduler's among them, so it must not wait.
        """
        done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def work() -> None:
            try:
                done.put((job(), None))
            except BaseException as error:
                done.put((None, error))

        with self._changed:
            self._wake()
            self._jobs.append(work)
        return done

    def close(self) -> None:
        """End all requests and wait for the thread; the backend itself stays open."""
        with self._changed:
            self._closed = True
            for handle in self._open():
                handle._put(_closed())
            self._queue.clear()
            self._cancelled.update(self._open())
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _cancel(self, handle: Handle) -> None:
        with self._changed:
            if handle in self._queue:
                self._queue.remove(handle)
                handle._put(None)
            elif handle in self._open():
                self._cancelled.add(handle)

    def _open(self) -> tuple[Handle, ...]:
        """Who waits for an outcome. Under the lock."""
        joining = () if self._joining is None else (self._joining,)
        return (*self._queue, *joining, *self._running.values())

    def _wake(self) -> None:
        """Let the thread know, or start one. Under the lock, before there is work: where neither is
        possible, nothing waits for it. Raises InputError, ResourceError."""
        if self._closed:
            raise _closed()
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="mimo-edge scheduler")
            try:
                thread.start()
            except RuntimeError as error:
                raise ResourceError(
                    f"no thread can be started: {error}. End some programs."
                ) from error
            self._thread = thread
        self._changed.notify_all()

    def _work(self) -> None:
        """The thread: round after round until nothing has come for a while."""
        try:
            while True:
                with self._changed:
                    if not self._has_work() and not self._closed:
                        self._changed.wait(LINGER)
                    if not self._has_work():
                        self._thread = None
                        return
                    jobs, self._jobs = self._jobs, deque()
                for job in jobs:
                    job()
                self._round()
        except BaseException as error:  # a fault of ours: nobody may wait for ever
            with self._changed:
                self._closed, self._thread = True, None
                for handle in self._open():
                    handle._put(error)
                self._queue.clear()
                self._running.clear()
                self._joining = None
                jobs, self._jobs = self._jobs, deque()
            for job in jobs:
                job()
            raise

    def _has_work(self) -> bool:
        return bool(self._queue or self._jobs or self._running)

    def _round(self) -> None:
        """Leave, join, read a piece of a prompt, and step."""
        self._drop_cancelled()
        self._admit()
        if self._loop is None:
            return
        failures: list[Outcome] = [*self._loop.prefill()]
        for outcome in (*failures, *self._loop.step()):
            with self._changed:
                handle = self._running.get(outcome.request_id)
                if handle is None:  # cancelled meanwhile
                    continue
                if isinstance(outcome, Failure) or outcome.last:
                    del self._running[outcome.request_id]
                    self._cancelled.discard(handle)
            handle._put(outcome.error if isinstance(outcome, Failure) else outcome)

    def _drop_cancelled(self) -> None:
        with self._changed:
            gone = [(n, h) for n, h in self._running.items() if h in self._cancelled]
            for request_id, handle in gone:
                del self._running[request_id]
                self._cancelled.discard(handle)
        for _, handle in gone:
            handle._put(None)
        for request_id, _ in gone:
            assert self._loop is not None
            self._loop.remove(request_id)

    def _admit(self) -> None:
        """Let waiting requests join while slots are free; one that cannot is told so."""
        while True:
            with self._changed:
                if not self._queue or len(self._running) >= self.slots:
                    return
                handle = self._joining = self._queue.popleft()
            try:
                if self._loop is None:
                    self._loop = Loop(self.backend, self._empty_id, self.slots, reuse=self._reuse)
                request_id = self._loop.begin(handle.request)
            except Exception as error:
                with self._changed:
                    self._joining = None
                    self._cancelled.discard(handle)
                handle._put(error)
                continue
            with self._changed:
                self._joining, self._running[request_id] = None, handle


class ScheduledAudio:
    """The audio pieces of a scheduler's backend, as jobs of its thread."""

    def __init__(self, scheduler: Scheduler, backend: Backend) -> None:
        self._scheduler, self._run = scheduler, scheduler.run
        self._backend, self.bundle = backend, backend.bundle

    def mel(self, wav: Floats) -> Floats:
        """wav [N] -> log-mel [1 + N // hop, n_mels]"""
        return self._run(lambda: self._backend.mel(wav))

    def encode(self, mel: Floats) -> Ints:
        """log-mel [T, n_mels] -> codes of all codebooks [n_q, T_code]"""
        return self._run(lambda: self._backend.encode(mel))

    def decode(self, codes: Ints, lengths: Ints) -> Floats:
        """codes [B, K, T], lengths [B] -> wav [B, T * samples_per_frame]"""
        return self._run(lambda: self._backend.decode(codes, lengths))

    def new_codec_rows(self, rows: int) -> CodecStates:
        """Fresh state of this many streams."""
        states = self._run(lambda: self._backend.new_codec_rows(rows))
        return ScheduledStates(self._scheduler, states)


class ScheduledStates:
    """The state of streams of the codec; what uses it are jobs of the scheduler's thread."""

    def __init__(self, scheduler: Scheduler, states: CodecStates) -> None:
        self._run, self._post, self._states = scheduler.run, scheduler.post, states
        self.rows, self.remembered = states.rows, states.remembered
        self.last_shape = states.last_shape

    def mel(self, feed: Feed) -> tuple[Floats, Floats, Floats]:
        """As `CodecStates.mel`."""
        return self._run(lambda: self._states.mel(feed))

    def frames(self, feed: Feed) -> tuple[Floats, Floats]:
        """As `CodecStates.frames`."""
        return self._run(lambda: self._states.frames(feed))

    def clear(self, row: int) -> None:
        """As `CodecStates.clear`."""
        self._run(lambda: self._states.clear(row))

    def close(self) -> None:
        """Soon. Also after the scheduler was closed, whose thread then uses them no more."""
        try:
            self._post(self._states.close)
        except InputError:
            self._states.close()


def _closed() -> MimoError:
    return InputError("the model was closed; open it again")

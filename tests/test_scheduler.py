"""The scheduler on rows that only count: many callers, more requests than slots, failures."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.bundle.errors import (
    BundleError,
    BusyError,
    ContextError,
    InputError,
    ResourceError,
)
from mimo_edge.runtime.generation.loop import Loop
from mimo_edge.runtime.generation.request import Request
from mimo_edge.runtime.generation.scheduler import Handle, Scheduler

from tests.counting import SPEECH, CountingBackend, CountingRows, answer, request


def scheduler_of(slots: int, **settings: Any) -> tuple[Scheduler, CountingBackend]:
    backend = CountingBackend(slots)
    return Scheduler(backend, SPEECH, slots, **settings), backend  # type: ignore[arg-type]


def ids(handle: Handle) -> list[int]:
    return [step.text_id for step in handle]


def until(true: Any) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


class Gate:
    """Holds the scheduler's thread inside a step until it is opened."""

    def __init__(self, backend: CountingBackend) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        real = backend.states.step

        def step(*given: Any) -> np.ndarray:
            self.reached.set()
            assert self.open.wait(30)
            return real(*given)

        backend.states.step = step  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    until(lambda: not [t for t in threading.enumerate() if t.name == "mimo-edge scheduler"])


def test_more_requests_than_slots() -> None:
    scheduler, _ = scheduler_of(2)
    with scheduler:
        handles = [scheduler.submit(request(n, n % 9, max_new=n)) for n in range(1, 12)]
        for n, handle in enumerate(handles, start=1):
            assert ids(handle) == answer(n, n)
            assert ids(handle) == [], "it has ended"


def test_a_request_that_fails_ends_alone() -> None:
    scheduler, backend = scheduler_of(4)
    backend.states.bad = {8: np.nan}
    with scheduler:
        handles = [scheduler.submit(request(5, first, max_new=6)) for first in (0, 1, 8, 2)]
        for number in (0, 1, 3):
            assert ids(handles[number]) == answer(5, 6)
        with pytest.raises(BundleError, match="NaN or infinite"):
            ids(handles[2])
        assert ids(scheduler.submit(request(4, max_new=2))) == answer(4, 2)


def test_a_prompt_that_does_not_fit_is_its_own_error() -> None:
    scheduler, _ = scheduler_of(1)
    with scheduler:
        with pytest.raises(ContextError):
            ids(scheduler.submit(request(40)))
        assert ids(scheduler.submit(request(39, max_new=5))) == answer(39, 1)


def test_the_queue_is_bounded() -> None:
    scheduler, backend = scheduler_of(1, waiting=2)
    gate = Gate(backend)
    with scheduler:
        handles = [scheduler.submit(request(3, max_new=3))]
        assert gate.reached.wait(30)
        handles += [scheduler.submit(request(3, max_new=3)) for _ in range(2)]
        assert (scheduler.busy, scheduler.waiting) == (1, 2)
        with pytest.raises(BusyError, match="2 requests wait"):
            scheduler.submit(request(3))
        gate.open.set()
        assert [ids(handle) for handle in handles] == [answer(3, 3)] * 3


def test_cancelled_while_it_waits_and_while_it_runs() -> None:
    scheduler, backend = scheduler_of(1)
    gate = Gate(backend)
    with scheduler:
        running, waiting = (scheduler.submit(request(3, max_new=30)) for _ in range(2))
        assert gate.reached.wait(30)
        waiting.cancel()
        assert ids(waiting) == [] and scheduler.waiting == 0
        running.cancel()
        after = scheduler.submit(request(4, max_new=2))
        gate.open.set()
        assert len(ids(running)) < 30
        assert ids(after) == answer(4, 2)
        running.cancel()  # long gone


def test_cancelled_between_queue_and_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, backend = scheduler_of(1)
    begins, go_on, begin = threading.Event(), threading.Event(), Loop.begin

    def slowly(self: Loop, asked: Request) -> int:
        begins.set()
        assert go_on.wait(30)
        return begin(self, asked)

    monkeypatch.setattr(Loop, "begin", slowly)
    with scheduler:
        handle = scheduler.submit(request(3, max_new=30))
        assert begins.wait(30)
        assert scheduler.waiting == scheduler.busy == 0
        handle.cancel()
        go_on.set()
        assert len(ids(handle)) < 3
        assert ids(scheduler.submit(request(4, max_new=2))) == answer(4, 2)
    assert backend.states.calls.count("step") < 6


def test_who_comes_while_it_closes_is_refused_and_not_served() -> None:
    scheduler, backend = scheduler_of(1)
    gate = Gate(backend)
    running = scheduler.submit(request(3, max_new=30))
    assert gate.reached.wait(30)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    until(lambda: scheduler.closed)
    with pytest.raises(InputError, match="was closed"):
        scheduler.submit(request(4, max_new=30))
    with pytest.raises(InputError, match="was closed"):
        scheduler.post(lambda: 1)
    assert scheduler.waiting == 0 and not scheduler._jobs
    gate.open.set()
    closing.join(30)
    assert not closing.is_alive() and backend.states.calls.count("extend") == 1
    with pytest.raises(InputError, match="was closed"):
        ids(running)


def test_without_a_thread_a_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scheduler, _ = scheduler_of(1)
    with scheduler:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none)
            with pytest.raises(ResourceError, match="no thread can be started"):
                scheduler.submit(request(3))
        assert scheduler.waiting == 0
        assert ids(scheduler.submit(request(4, max_new=2))) == answer(4, 2)


def test_a_dropped_stream_waits_for_nothing() -> None:
    """The garbage collection may close it while its thread has the scheduler's lock."""
    scheduler, backend = scheduler_of(1)
    backend.new_codec_rows = lambda rows: CountingRows(rows)  # type: ignore[attr-defined]
    with scheduler:
        states = scheduler.audio.new_codec_rows(1)

        def collect() -> None:
            with scheduler._changed:
                states.close()

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        until(lambda: states._states.closed)  # type: ignore[attr-defined]


def test_cancelled_with_a_reason_its_reader_gets_that() -> None:
    scheduler, backend = scheduler_of(1)
    gate = Gate(backend)
    with scheduler:
        running, waiting = (scheduler.submit(request(3, max_new=30)) for _ in range(2))
        assert gate.reached.wait(30)
        for handle in (waiting, running):
            handle.cancel(InputError("the caller has left"))
            handle.cancel(InputError("later reasons do not count"))
        gate.open.set()
        for handle in (waiting, running):
            with pytest.raises(InputError, match="has left"):
                next(handle)
            assert ids(handle) == []
        assert ids(scheduler.submit(request(4, max_new=2))) == answer(4, 2)


def test_who_stops_reading_frees_the_slot() -> None:
    scheduler, _ = scheduler_of(1)
    with scheduler:
        steps = scheduler.generate(request(3, max_new=36))
        assert next(steps).text_id == 3
        steps.close()  # type: ignore[attr-defined]
        assert ids(scheduler.submit(request(4, max_new=2))) == answer(4, 2)
        until(lambda: scheduler.busy == 0)


def test_jobs_come_between_steps_and_bring_their_errors() -> None:
    scheduler, _ = scheduler_of(1)
    with scheduler:
        handle = scheduler.submit(request(3, max_new=30))
        assert scheduler.run(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            scheduler.run(lambda: 1 // 0)
        assert scheduler.run(lambda: scheduler.run(threading.current_thread)) is not None
        assert ids(handle) == answer(3, 30)


def test_all_work_is_done_by_one_thread_at_a_time() -> None:
    scheduler, backend = scheduler_of(2)
    inside: list[int] = []
    seen: list[int] = []
    real = backend.states.step

    def step(*given: Any) -> np.ndarray:
        inside.append(1)
        seen.append(len(inside))
        result = real(*given)
        time.sleep(0.0005)
        inside.pop()
        return result

    backend.states.step = step  # type: ignore[method-assign]
    with scheduler:
        results: dict[int, list[int]] = {}

        def caller(n: int) -> None:
            results[n] = ids(scheduler.submit(request(n, n, max_new=9)))

        threads = [threading.Thread(target=caller, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: answer(n, 9) for n in range(1, 9)} and set(seen) == {1}


def test_closing_ends_those_that_run_and_those_that_wait() -> None:
    scheduler, backend = scheduler_of(1)
    gate = Gate(backend)
    handles = [scheduler.submit(request(3, max_new=30)) for _ in range(2)]
    assert gate.reached.wait(30)
    threading.Timer(0.01, gate.open.set).start()
    scheduler.close()
    for handle in handles:
        with pytest.raises(InputError, match="closed"):
            ids(handle)
    with pytest.raises(InputError, match="closed"):
        scheduler.submit(request(3))
    assert backend.states.closed
    scheduler.close()


def test_a_fault_of_the_scheduler_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler, _ = scheduler_of(1)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(scheduler, "_admit", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        ids(scheduler.submit(request(3)))
    with pytest.raises(InputError, match="closed"):
        scheduler.submit(request(3))


def test_slots_that_cannot_be() -> None:
    with pytest.raises(InputError, match="slots must be 1 or more"):
        scheduler_of(0)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_each_gets_what_it_gets_alone(seed: int) -> None:
    """Random arrivals, lengths, cancellations and failures; slots and prefixes are shared."""
    rng = random.Random(seed)
    scheduler, backend = scheduler_of(3, waiting=400)
    backend.states.bad = {8: np.nan}
    with scheduler:
        going: list[tuple[Handle, int, int, int]] = []
        for _ in range(150):
            patches, count, first = rng.randint(1, 30), rng.randint(1, 12), rng.randint(0, 8)
            wanted = min(count, backend.states.capacity - patches)
            handle = scheduler.submit(request(patches, first, max_new=count))
            going.append((handle, patches, wanted, first))
            if rng.random() < 0.2:
                rng.choice(going)[0].cancel()
                time.sleep(rng.random() / 1000)
            if rng.random() < 0.3:
                handle, patches, wanted, first = going.pop(rng.randrange(len(going)))
                check(handle, patches, wanted, first)
        for each in going:
            check(*each)
        until(lambda: scheduler.busy == 0)
        assert scheduler.waiting == 0 and not scheduler._cancelled


def check(handle: Handle, patches: int, wanted: int, first: int) -> None:
    """All of its answer, or the beginning of it if it was cancelled, or its own failure."""
    seen = []
    try:
        for step in handle:
            assert step.index == len(seen)
            seen.append(step.text_id)
    except BundleError:
        assert first == 8 and not seen
        return
    assert seen == answer(patches, wanted)[: len(seen)]
    assert first != 8 or not seen, "it should have failed"

"""Pieces traced by two processes at once, while this one writes the weights of those that are done.

Tracing takes most of an export's time, keeps one core busy, and needs nothing of a checkpoint but
its configs. Each tracer is a program of its own (`tracer.py`) that reads names on its standard
input and answers with traced pieces. It ends when its input does, so none outlives this process,
however that ends.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from mimo_edge.export.pieces import Pieces
from mimo_edge.export.traced import TracedPiece, traced_piece
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, ResourceError

PROCESSES = 2  # each takes TRACE_BYTES of memory; a third would wait for the longest piece
# the longest first, and early the one whose weights take longest to write
ORDER = (
    "tokenizer_decoder",
    "backbone",
    "tokenizer_encoder",
    "patch_decoder",
    "mel_stream",
    "vocoder_stream",
    "patch_encoder",
    "mel",
)
PROGRAM = "from mimo_edge.export.tracer import main; main()"

OnBegin = Callable[[str], None]
Hear = Callable[[str, bool], None]  # of a piece: begun, or traced
Traced = tuple[str, TracedPiece]


def processes_for(count: int) -> int:
    """How many processes trace so many pieces; 0: this one does it, as on a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    few = min(PROCESSES, count, cores or 1)
    return few if few > 1 and sys.executable else 0


@contextmanager
def traced_pieces(
    pieces: Pieces,
    names: Sequence[str],
    on_begin: OnBegin,
    hear: Hear = lambda *_: None,
) -> Iterator[Any]:
    """An iterator of the pieces with their names, each as soon as it is traced.

    `on_begin` is told of one that is begun when the iterator is asked for the next; `hear` at once,
    in the thread of its tracer, and when it is traced. What a tracer raises, the iterator raises.
    When the block is left, no tracer runs any more.
    """
    count = processes_for(len(names))
    if not count:
        yield _traced_here(pieces, names, on_begin, hear)
        return
    tracers = [_Tracer(pieces, hear) for _ in range(count)]
    try:
        yield _traced_there(tracers, names, on_begin)
    finally:
        for tracer in tracers:
            tracer.end()


def together(
    traced: Iterable[Traced], groups: Sequence[Sequence[str]]
) -> Iterator[dict[str, TracedPiece]]:
    """The pieces of a group in its order, as soon as the last of them is traced."""
    waiting: dict[str, TracedPiece] = {}
    for name, piece in traced:
        waiting[name] = piece
        group = next(group for group in groups if name in group)
        if all(each in waiting for each in group):
            yield {each: waiting.pop(each) for each in group}


def _traced_here(
    pieces: Pieces, names: Sequence[str], on_begin: OnBegin, hear: Hear
) -> Iterator[Traced]:
    for name in names:
        hear(name, False)
        on_begin(name)
        piece = traced_piece(pieces, name)
        hear(name, True)
        yield name, piece


def _traced_there(
    tracers: "list[_Tracer]", names: Sequence[str], on_begin: OnBegin
) -> Iterator[Traced]:
    left = deque(sorted(names, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER)))
    said: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    for tracer in tracers:
        tracer.begin(left, said)
    for _ in range(2 * len(names)):  # each is begun, and answered
        name, answer = said.get()
        if answer is None:
            on_begin(name)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            yield name, answer


class _Tracer:
    """A process that traces one piece after the other."""

    def __init__(self, pieces: Pieces, hear: Hear) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            process_group=0,  # Ctrl-C is for this process, which ends its tracers
        )
        self._pieces, self._hear = pieces, hear
        self._thread: Thread | None = None

    def begin(self, left: deque[str], said: "SimpleQueue[tuple[str, Any]]") -> None:
        """Trace what is left of the names, in a thread that waits for the process."""
        self._thread = Thread(target=self._work, args=(left, said), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        if self._thread is not None:
            self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # half a question may be left in it
                pipe.close()

    def _work(self, left: deque[str], said: "SimpleQueue[tuple[str, Any]]") -> None:
        """What is begun is said with None, and then with its answer."""
        while left:
            try:
                name = left.popleft()
            except IndexError:  # the other took the last one
                return
            self._hear(name, False)
            said.put((name, None))
            answer = self._answer(name)
            said.put((name, answer))
            if isinstance(answer, BaseException):
                return
            self._hear(name, True)

    def _answer(self, name: str) -> TracedPiece | BaseException:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((self._pieces, name), self._process.stdin)
            self._process.stdin.flush()
            answer: TracedPiece | BaseException = pickle.load(self._process.stdout)
            return answer
        except (OSError, EOFError, pickle.UnpicklingError):
            return _ended(name, self._process.wait())


def _ended(name: str, code: int) -> Exception:
    if code < 0:
        return ResourceError(
            f"the process that traced {name} was killed (signal {-code}); memory may have run out. "
            "Free some, and export again with --resume."
        )
    return EnvironmentProblem(
        f"the process that traced {name} ended with exit code {code}; what it said stands above."
    )

"""The generation loop: one generator of typed steps, which everything else drains.

Every generated text id other than the empty id brings a patch of empty codes; the patch decoder
runs only for rows whose newest id is the empty id. Lengths and limits count patches.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Backend, Ints
from mimo_edge.runtime.backends.finite import OVERFLOW
from mimo_edge.runtime.bundle.errors import BundleError, ContextError, InputError
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.sampling import Noise, sample


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate. `prompt` is a grid [1 + K, P * G]."""

    prompt: Grid
    text: Sampling
    audio: Sampling
    stop_ids: tuple[int, ...] = ()
    max_new: int | None = None  # patches; None = as many as the context holds
    min_new: int = 0  # patches before a stop id may come
    seed: int = 0

    def __post_init__(self) -> None:
        check_limits(self.max_new, self.min_new, self.seed)


def check_limits(max_new: int | None, min_new: int, seed: int) -> None:
    """Raises InputError for what no answer can have."""
    if max_new is not None and max_new < 1:
        raise InputError(f"max_new must be at least 1 patch, not {max_new}")
    if min_new < 0:
        raise InputError(f"min_new must be 0 or more patches, not {min_new}")
    if not 0 <= seed < 1 << 128:
        raise InputError(f"seed must be 0 or more and below 2**128, not {seed}")


@dataclass(frozen=True, eq=False)
class Step:
    """One generated patch."""

    request_id: int
    index: int  # 0 for the first patch of the answer
    text_id: int
    codes: Ints | None  # [K, G], or None in a text patch
    last: bool
    stopped: bool  # it ended with a stop id, not with the length
    seconds: float  # that the loop took for it, the prefill included in the first
    backend_seconds: float  # of those, inside the backend


@dataclass(eq=False)
class _Row:
    request_id: int
    request: Request
    noise: Noise
    scores: np.ndarray  # [V] of the next text id
    limit: int  # patches of the answer
    seconds: float  # since its last patch; others may have waited on it longer
    backend_seconds: float
    index: int = 0


class Loop:
    """Rows that share each step; they join with `add` and leave by ending or with `remove`.

    `empty_id` is the text id that means "speech here". A patch is handed out as soon as it is
    drawn; the backbone reads it only when the next one is asked for. If that fails for want of
    memory, nothing is lost: the loop can go on once a row was removed.
    """

    def __init__(self, backend: Backend, empty_id: int, rows: int = 1) -> None:
        self._model, self._empty_id = backend.bundle.model, empty_id
        self._speaks = backend.bundle.speaks
        self._states = backend.new_rows(rows)
        self._rows: list[_Row | None] = [None] * rows
        self._unread: tuple[Ints, Ints, list[_Row]] | None = None  # ids, codes, whose they are
        self._requests = 0

    @property
    def free(self) -> int:
        """Rows that can still join."""
        return self._rows.count(None)

    def add(self, request: Request) -> int:
        """Prefill a request's prompt; its first patch comes with the next `step`.

        Returns the request id of its steps. Raises ContextError if the prompt leaves no room for an
        answer, InputError if no row is free.
        """
        if self.free == 0:
            raise InputError(f"all {len(self._rows)} rows are busy; wait for one to end")
        text_ids, codes = split_grid(request.prompt, self._model.group_size)
        room = self._states.capacity - len(text_ids)
        if room < 1:
            built_short = self._states.capacity < self._model.context
            raise ContextError(
                f"the prompt has {len(text_ids)} patches and the context {self._states.capacity}. "
                "Shorten the prompt or the audio in it, drop old turns"
                f"{', or build engines with a larger --max-seq' if built_short else ''}."
            )
        self._read()  # it moves the states of all rows, and would move those of the new one
        slot = self._rows.index(None)
        begin = time.perf_counter()
        scores = self._states.prefill(slot, text_ids, codes)
        took = time.perf_counter() - begin
        limit = room if request.max_new is None else min(room, request.max_new)
        self._requests += 1
        noise = Noise(request.seed)
        self._rows[slot] = _Row(self._requests, request, noise, scores, limit, took, took)
        return self._requests

    def remove(self, request_id: int) -> None:
        """Let a row leave before its end."""
        for slot, row in enumerate(self._rows):
            if row is not None and row.request_id == request_id:
                self._leave(slot)

    def step(self) -> list[Step]:
        """One patch for every row, in slot order; rows that end with it leave.

        Raises BundleError if the bundle computes NaN or infinity.
        """
        self._read()
        model, begin = self._model, time.perf_counter()
        rows = [(slot, row) for slot, row in enumerate(self._rows) if row is not None]
        if not rows:
            return []
        draws = 1 + model.group_size * model.n_q
        uniforms = np.zeros((len(self._rows), draws), np.float32)
        text_ids = np.zeros(len(self._rows), np.int64)
        for slot, row in rows:
            request = row.request
            if not np.isfinite(row.scores.max()):
                raise BundleError(f"the scores of the text are NaN or infinite; {OVERFLOW}")
            uniforms[slot] = row.noise(row.index, draws)
            removed = request.stop_ids if row.index < request.min_new else ()
            text_ids[slot] = sample(row.scores, uniforms[slot, 0], request.text, removed)
        codes = self._codes(rows, text_ids, uniforms[:, 1:])

        steps, going = [], []
        took = time.perf_counter() - begin
        for slot, row in rows:
            text_id = int(text_ids[slot])
            stopped = text_id in row.request.stop_ids and row.index + 1 >= row.request.min_new
            last = stopped or row.index + 1 >= row.limit
            spoken = codes[slot] if text_id == self._empty_id else None
            times = row.seconds + took, row.backend_seconds
            steps.append(Step(row.request_id, row.index, text_id, spoken, last, stopped, *times))
            row.seconds, row.backend_seconds, row.index = 0.0, 0.0, row.index + 1
            if last:
                self._leave(slot)
            else:
                going.append(row)
        self._unread = (text_ids, codes, going)
        return steps

    def _read(self) -> None:
        """Let the backbone read the patches handed out last, for the rows that are still there."""
        if self._unread is None:
            return
        text_ids, codes, going = self._unread
        rows = [(slot, row) for slot, row in enumerate(self._rows) if row in going]
        if rows:
            active = np.zeros(len(self._rows), bool)
            active[[slot for slot, _ in rows]] = True
            begin = time.perf_counter()
            scores = self._states.step(text_ids, codes, active)
            took = time.perf_counter() - begin
            for slot, row in rows:
                row.scores = scores[slot]
                row.seconds += took
                row.backend_seconds += took
        self._unread = None

    def _codes(self, rows: list[tuple[int, _Row]], text_ids: Ints, uniforms: np.ndarray) -> Ints:
        """The patches [rows, K, G] that go with the text ids."""
        model, count = self._model, len(self._rows)
        empty = np.array(model.empty_codes, np.int64)[None, :, None]
        codes = np.repeat(np.repeat(empty, count, 0), model.group_size, 2)
        speaking = [(slot, row) for slot, row in rows if text_ids[slot] == self._empty_id]
        if not speaking or not self._speaks:  # a model that only listens has nothing to say
            return codes
        settings = np.zeros((3, count))
        for slot, row in speaking:
            audio = row.request.audio
            settings[:, slot] = audio.temperature, audio.top_k, audio.top_p
        begin = time.perf_counter()
        drawn = self._states.draw_codes(
            uniforms.reshape(count, model.group_size, model.n_q),
            settings[0].astype(np.float32),
            settings[1].astype(np.int64),
            settings[2].astype(np.float32),
        )
        inside = time.perf_counter() - begin
        for slot, row in speaking:
            if drawn[slot].min() < 0:
                raise BundleError(f"the scores of the audio codes are NaN or infinite; {OVERFLOW}")
            codes[slot] = drawn[slot].T
            row.backend_seconds += inside
        return codes

    def _leave(self, slot: int) -> None:
        self._rows[slot] = None
        self._states.clear(slot)


def generate(backend: Backend, request: Request, empty_id: int) -> Iterator[Step]:
    """The steps of one answer."""
    loop = Loop(backend, empty_id)
    loop.add(request)
    while steps := loop.step():
        yield from steps


def split_grid(grid: Grid, group_size: int) -> tuple[Ints, Ints]:
    """Grid [1 + K, P * G] -> text ids [P] and codes [P, K, G]."""
    patches = grid.reshape(grid.shape[0], -1, group_size)  # [1 + K, P, G]
    return patches[0, :, 0].copy(), np.ascontiguousarray(patches[1:].swapaxes(0, 1))


def join_steps(steps: list[Step], empty_codes: tuple[int, ...], group_size: int) -> Grid:
    """The generated grid [1 + K, P * G]; text ids are repeated over a patch, as upstream does."""
    empty = np.repeat(np.array(empty_codes, np.int64)[:, None], group_size, 1)
    columns = []
    for step in steps:
        codes = empty if step.codes is None else step.codes
        columns.append(np.concatenate((np.full((1, group_size), step.text_id), codes)))
    if not columns:
        return np.zeros((1 + len(empty_codes), 0), np.int64)
    return np.concatenate(columns, axis=1)

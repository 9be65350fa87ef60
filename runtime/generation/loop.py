"""The generation loop: requests in slots share each step, and each gets what it would get alone.

Every generated text id other than the empty id brings a patch of empty codes; the patch decoder
runs only for slots whose newest id is the empty id. Lengths and limits count patches.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from mimo_edge.runtime.backends.base import Backend, Floats, Ints
from mimo_edge.runtime.backends.finite import OVERFLOW
from mimo_edge.runtime.bundle.errors import BundleError, ContextError, InputError, ResourceError
from mimo_edge.runtime.generation.positions import Positions
from mimo_edge.runtime.generation.request import Failure, Outcome, Request, Step, split_grid
from mimo_edge.runtime.generation.sampling import Noise, sample

PREFILL_CHUNK = 256  # patches of a prompt between two steps of the others


@dataclass(eq=False)
class _Row:
    """A request in its slot."""

    request_id: int
    request: Request
    text_ids: Ints  # [P] of the prompt
    codes: Ints  # [P, K, G]
    read: int  # patches of the prompt that the slot holds
    limit: int  # patches of the answer
    noise: Noise
    scores: Floats | None = None  # [V] of the next text id, once the prompt is read
    unread: tuple[int, Ints] | None = None  # the newest patch, until the backbone has read it
    index: int = 0
    seconds: float = 0.0  # since its last patch; others may have waited on it longer
    backend_seconds: float = 0.0

    def spend(self, seconds: float, inside: float) -> None:
        self.seconds += seconds
        self.backend_seconds += inside


@dataclass(eq=False)
class _Slot:
    """A row of the backend's states: who is in it, and what it holds, of an earlier one perhaps."""

    held: Positions
    row: _Row | None = None
    left: int = field(default=0)  # when the last one left: what has lain longest goes first


class Loop:
    """Requests that share each step; they join with `add` and leave by ending or with `remove`.

    `empty_id` is the text id that means "speech here". A patch is handed out as soon as it is
    drawn; the backbone reads it only when the next one is asked for. A request that fails leaves
    with its own error, and the others go on. What an answer leaves in its slot is not computed
    again if the next prompt begins with it, unless `reuse` is false.
    """

    def __init__(
        self, backend: Backend, empty_id: int, slots: int = 1, *, reuse: bool = True
    ) -> None:
        self._model, self._empty_id = backend.bundle.model, empty_id
        self._speaks = backend.bundle.speaks
        self._states = backend.new_rows(slots)
        self._slots = [_Slot(Positions(empty_id)) for _ in range(slots)]
        self._reuse = reuse
        self._requests = 0  # that have joined so far
        self.reused = 0  # patches of prompts that were not computed

    @property
    def free(self) -> int:
        """Slots that can take a request."""
        return sum(slot.row is None for slot in self._slots)

    def add(self, request: Request) -> int:
        """Take a request in and read its prompt; its first patch comes with the next `step`.

        Returns the request id of its steps. Raises ContextError if the prompt leaves no room for
        an answer, InputError if no slot is free, and what makes the prompt fail.
        """
        request_id = self.begin(request)
        while self._waiting():
            for failure in self.prefill():
                if failure.request_id == request_id:
                    raise failure.error
        return request_id

    def begin(self, request: Request) -> int:
        """As `add`, but the prompt is left to `prefill`."""
        if self.free == 0:
            raise InputError(f"all {len(self._slots)} slots are busy; wait for one to end")
        text_ids, codes = split_grid(request.prompt, self._model.group_size)
        room = self._states.capacity - len(text_ids)
        if room < 1:
            built_short = self._states.capacity < self._model.context
            raise ContextError(
                f"the prompt has {len(text_ids)} patches and the context {self._states.capacity}. "
                "Shorten the prompt or the audio in it, drop old turns"
                f"{', or build engines with a larger --max-seq' if built_short else ''}."
            )
        number, kept = self._place(text_ids, codes)
        limit = room if request.max_new is None else min(room, request.max_new)
        self._requests += 1
        self.reused += kept
        noise = Noise(request.seed)
        row = _Row(self._requests, request, text_ids, codes, kept, limit, noise)
        self._slots[number].row = row
        return row.request_id

    def prefill(self, patches: int = PREFILL_CHUNK) -> list[Failure]:
        """Read at most so many patches of one prompt, of the request that came first."""
        waiting = self._waiting()
        if not waiting:
            return []
        number, row = min(waiting, key=lambda pair: pair[1].request_id)
        slot, part = self._slots[number], slice(row.read, row.read + patches)
        begin = time.perf_counter()
        try:
            scores = self._states.extend(number, row.text_ids[part], row.codes[part])
        except Exception as error:
            return [self._fail(number, error)]
        slot.held.append(row.text_ids[part], row.codes[part])
        row.read = slot.held.length
        if row.read == len(row.text_ids):
            row.scores = scores.copy()
        took = time.perf_counter() - begin
        row.spend(took, took)
        return []

    def remove(self, request_id: int) -> None:
        """Let a request leave before its end."""
        for number, slot in enumerate(self._slots):
            if slot.row is not None and slot.row.request_id == request_id:
                self._leave(number)

    def step(self) -> list[Outcome]:
        """One patch for every request whose prompt is read, in slot order; those that end with it
        leave, and those that fail, each with its own error.

        Where the step itself fails for want of memory, the longest one leaves; for another reason,
        all that were part of it.
        """
        failures = self._read()
        rows = [(n, row) for n, row in self._rows() if row.scores is not None]
        if not rows:
            return [*failures]
        begin = time.perf_counter()
        draws = 1 + self._model.group_size * self._model.n_q
        uniforms: dict[int, Floats] = {}
        text_ids: dict[int, int] = {}
        going = []
        for number, row in rows:
            assert row.scores is not None
            if not np.isfinite(row.scores.max()):
                error = BundleError(f"the scores of the text are NaN or infinite; {OVERFLOW}")
                failures.append(self._fail(number, error))
                continue
            going.append((number, row))
            uniforms[number] = row.noise(row.index, draws)
            removed = row.request.stop_ids if row.index < row.request.min_new else ()
            chosen = sample(row.scores, float(uniforms[number][0]), row.request.text, removed)
            text_ids[number] = chosen
        speaking = [(n, row) for n, row in going if text_ids[n] == self._empty_id]
        if not self._speaks:  # such a patch is empty: the model was trained to listen only
            speaking = []
        try:
            codes, inside = self._codes(speaking, uniforms)
        except Exception as error:
            failed = [self._fail(number, error) for number, _ in speaking]
            return [*failures, *failed]
        took = time.perf_counter() - begin
        for number, row in going:
            row.spend(took, inside if (number, row) in speaking else 0.0)
        return [*failures, *self._hand_out(going, text_ids, codes)]

    def close(self) -> None:
        """Give the memory back. The loop is of no use then."""
        self._states.close()

    def _rows(self) -> list[tuple[int, _Row]]:
        return [(n, slot.row) for n, slot in enumerate(self._slots) if slot.row is not None]

    def _waiting(self) -> list[tuple[int, _Row]]:
        """Those whose prompt is not read to its end."""
        return [(n, row) for n, row in self._rows() if row.read < len(row.text_ids)]

    def _place(self, text_ids: Ints, codes: Ints) -> tuple[int, int]:
        """A free slot, and how many patches of the prompt it holds now.

        The last patch is always read anew: its scores are wanted.
        """
        slots, last = self._slots, len(text_ids) - 1
        free = [n for n, slot in enumerate(slots) if slot.row is None]
        common = [0] * len(slots)
        if self._reuse:
            common = [min(last, slot.held.common(text_ids, codes)) for slot in slots]
        kept = max(common)
        source = common.index(kept)
        if source in free and slots[source].held.length - kept <= 1:
            target = source  # the prompt goes on where an answer has ended
        else:
            target = min(free, key=lambda n: (slots[n].held.length > 0, slots[n].left, n))
        if target == source or kept == 0:
            self._states.truncate(target, kept)
            slots[target].held.truncate(kept)
        else:
            self._states.copy(source, target, kept)
            slots[target].held.copy(slots[source].held, kept)
        return target, kept

    def _read(self) -> list[Failure]:
        """Let the backbone read the patches handed out last, of those that are still there."""
        rows = [(n, row) for n, row in self._rows() if row.unread is not None]
        if not rows:
            return []
        model, first = self._model, rows[0][0]
        count = rows[-1][0] + 1 - first
        text_ids, active = np.zeros(count, np.int64), np.zeros(count, bool)
        codes = np.zeros((count, model.n_q, model.group_size), np.int64)
        for number, row in rows:
            assert row.unread is not None
            text_ids[number - first], codes[number - first] = row.unread
            active[number - first] = True
        begin = time.perf_counter()
        try:
            scores = self._states.step(first, text_ids, codes, active)
        except ResourceError as error:
            longest = max(rows, key=lambda pair: self._slots[pair[0]].held.length)
            return [self._fail(longest[0], error), *self._read()]
        except Exception as error:
            return [self._fail(number, error) for number, _ in rows]
        took = time.perf_counter() - begin
        for number, row in rows:
            at = slice(number - first, number - first + 1)
            self._slots[number].held.append(text_ids[at], codes[at])
            row.scores, row.unread = scores[number - first].copy(), None
            row.spend(took, took)
        return []

    def _codes(
        self, speaking: Sequence[tuple[int, _Row]], uniforms: Mapping[int, Floats]
    ) -> tuple[dict[int, Ints], float]:
        """The codes [K, G] of those that speak, by slot, and the seconds inside the backend."""
        if not speaking:
            return {}, 0.0
        model, first = self._model, speaking[0][0]
        count = speaking[-1][0] + 1 - first
        settings = np.zeros((3, count))
        given = np.zeros((count, model.group_size, model.n_q), np.float32)
        for number, row in speaking:
            audio = row.request.audio
            settings[:, number - first] = audio.temperature, audio.top_k, audio.top_p
            given[number - first] = uniforms[number][1:].reshape(given.shape[1:])
        begin = time.perf_counter()
        drawn = self._states.draw_codes(
            first,
            given,
            settings[0].astype(np.float32),
            settings[1].astype(np.int64),
            settings[2].astype(np.float32),
        )
        inside = time.perf_counter() - begin
        return {number: drawn[number - first].T.copy() for number, _ in speaking}, inside

    def _hand_out(
        self, rows: Sequence[tuple[int, _Row]], text_ids: Mapping[int, int], codes: dict[int, Ints]
    ) -> list[Outcome]:
        """A step for each row, and its end where that is due."""
        outcomes: list[Outcome] = []
        empty = np.repeat(np.array(self._model.empty_codes)[:, None], self._model.group_size, 1)
        for number, row in rows:
            text_id, spoken = text_ids[number], codes.get(number)
            if spoken is not None and spoken.min() < 0:  # what the graph makes of such scores
                error = BundleError(
                    f"the scores of the audio codes are NaN or infinite; {OVERFLOW}"
                )
                outcomes.append(self._fail(number, error))
                continue
            enough = row.index + 1 >= row.request.min_new
            stopped = text_id in row.request.stop_ids and enough
            last = stopped or row.index + 1 >= row.limit
            times = row.seconds, row.backend_seconds
            step = Step(row.request_id, row.index, text_id, spoken, last, stopped, *times)
            outcomes.append(step)
            row.seconds, row.backend_seconds, row.index = 0.0, 0.0, row.index + 1
            row.unread = text_id, empty if spoken is None else spoken
            if last:
                self._leave(number)
        return outcomes

    def _leave(self, number: int) -> None:
        """Empty a slot, but not what it holds: the next prompt may begin with it."""
        slot = self._slots[number]
        slot.row, slot.left = None, self._requests
        # a step writes behind what an idle row holds
        most = self._states.capacity - 1 if self._reuse else 0
        if slot.held.length > most or not self._reuse:
            self._states.truncate(number, most)
            slot.held.truncate(most)

    def _fail(self, number: int, error: Exception) -> Failure:
        """Let a row leave, and nothing of it stay."""
        slot = self._slots[number]
        assert slot.row is not None
        request_id = slot.row.request_id
        slot.row, slot.left = None, self._requests
        self._states.truncate(number, 0)
        slot.held.truncate(0)
        return Failure(request_id, error)


def generate(backend: Backend, request: Request, empty_id: int) -> Iterator[Step]:
    """The steps of one answer, in a loop of its own. Raises what makes it fail."""
    loop = Loop(backend, empty_id)
    try:
        loop.add(request)
        while outcomes := loop.step():
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    raise outcome.error
                yield outcome
    finally:
        loop.close()

"""Rows on ONNX Runtime: their buffers, and the state of several answers in them.

Keys and values are one buffer per layer and kind, bound as input and output of the same run, so
that they are updated in place. A row's part of a buffer is contiguous and is bound by its address:
a prompt is read where it will be used, and a step costs the busy rows and those between. Buffers
start small and double, because attention computes over their whole length. What moves them, copies
a row or zeroes it happens where they lie (`ort_memory`); what a step does may be recorded as a CUDA
graph (`ort_graphs`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from mimo_edge.runtime.backends.base import Bools, Floats, Ints
from mimo_edge.runtime.backends.ort_graphs import Run
from mimo_edge.runtime.backends.ort_memory import Buffer
from mimo_edge.runtime.backends.ort_patch import OrtPatchDecoder
from mimo_edge.runtime.backends.ort_sessions import Sessions
from mimo_edge.runtime.bundle.errors import ContextError
from mimo_edge.runtime.bundle.manifest import TensorSpec
from numpy.typing import DTypeLike

FIRST_CAPACITY = 256  # positions
# positions at a time: their states and scores are memory, and the weights are read once for each
# chunk, which on a CPU is little beside what it computes
PREFILL_CHUNK = 128
PREFILL_CHUNK_CUDA = 512
STEP_PIECES = ("patch_encoder", "backbone")  # what a step runs
KEPT = 4  # sets of neighbouring rows whose bindings are kept
T = TypeVar("T", "_Step", OrtPatchDecoder)


@dataclass(frozen=True, eq=False)
class _Step:
    """The newest patch of n neighbouring rows, and the runs that read it."""

    text_ids: Buffer  # [n, 1]
    codes: Buffer  # [n, 1, K, G]
    past: Buffer  # [n]
    logits: Buffer  # [n, V]
    runs: tuple[tuple[str, Any, Run], ...]  # piece, binding, how it is run
    kept: tuple[Buffer, ...]  # a binding has addresses and keeps nothing alive

    def release(self) -> None:
        """Let go of what was recorded."""
        for _, _, run in self.runs:
            run.release()


class OrtRowStates:
    """Decode state of several rows; see `backends.base.RowStates`."""

    def __init__(self, backend: Sessions, rows: int, capacity: int = FIRST_CAPACITY) -> None:
        self.rows = rows
        self.lengths = np.zeros(rows, np.int64)
        self._backend, self._model = backend, backend.bundle.model
        spec = backend.bundle.piece("backbone")
        self._dtype = np.dtype(_port(spec.inputs, "embeddings").dtype)
        self._cache_dtype = np.dtype(backend.bundle.manifest.cache_dtype)  # int8 in some builds
        self._names = [p.name for p in spec.inputs if p.name.startswith(("past_k", "past_v"))]
        self.capacity = self._model.context
        self._capacity = min(capacity, self.capacity)
        self._touched = np.zeros(rows, np.int64)  # positions of a row that may not be zero
        local_width = _port(spec.outputs, "local_hidden").axes[-1]
        assert isinstance(local_width, int)
        self._local_hidden = self._buffer((rows, local_width), self._dtype)
        self._width = 1  # rows that the caches have memory for
        self._caches = self._new_caches(self._width, self._capacity)
        self._steps: dict[tuple[int, int], _Step] = {}  # by first row and count
        self._draws: dict[tuple[int, int], OrtPatchDecoder] = {}

    def extend(self, row: int, text_ids: Ints, codes: Ints) -> Floats:
        start = int(self.lengths[row])
        self._reserve(row + 1, start + len(text_ids))
        self.truncate(row, start)
        try:
            chunk = PREFILL_CHUNK if self._backend.memory.device == "cpu" else PREFILL_CHUNK_CUDA
            for at in range(0, len(text_ids), chunk):
                part = slice(at, at + chunk)
                logits = self._run_chunk(row, text_ids[None, part], codes[None, part])
        except BaseException:
            self.lengths[row] = start
            raise
        return logits

    def truncate(self, row: int, length: int) -> None:
        self.lengths[row] = min(length, self.lengths[row])
        first, last = int(self.lengths[row]), int(self._touched[row])
        if last > first:  # a mask does not hide what is NaN or infinite
            for cache in self._caches:
                cache.zero(row, first, last)
        self._touched[row] = first

    def copy(self, source: int, target: int, length: int) -> None:
        self._reserve(target + 1, length)
        self.truncate(target, 0)
        for cache in self._caches:
            cache.copy_row(source, target, length, cache)
        self.lengths[target] = self._touched[target] = length

    def step(self, first: int, text_ids: Ints, codes: Ints, active: Bools) -> Floats:
        rows = slice(first, first + len(text_ids))
        lengths = self.lengths[rows]
        self._reserve(rows.stop, int(lengths.max()) + 1)
        step = _known(self._steps, (first, len(text_ids)), self._bind_step)
        step.text_ids.write(text_ids[:, None])
        step.codes.write(codes[:, None])
        step.past.write(lengths)
        np.maximum(self._touched[rows], lengths + 1, out=self._touched[rows])
        for piece, binding, run in step.runs:
            self._backend.run_bound(piece, binding, run.options)
        self.lengths[rows] += active
        return step.logits.read()

    def draw_codes(
        self, first: int, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats
    ) -> Ints:
        decoder = _known(self._draws, (first, len(uniforms)), self._new_patch_decoder)
        return decoder.draw(uniforms, temperature, top_k, top_p)

    def close(self) -> None:
        self._forget_steps()
        for decoder in self._draws.values():
            decoder.release()
        self._draws, self._caches = {}, []

    def _forget_steps(self) -> None:
        for step in self._steps.values():
            step.release()
        self._steps.clear()

    def _run_chunk(self, row: int, text_ids: Ints, codes: Ints) -> Floats:
        """Append positions [1, T], [1, T, K, G] to a row."""
        feed = {"text_ids": text_ids, "codes": codes}
        embeddings = self._backend.run("patch_encoder", feed)
        past, count = int(self.lengths[row]), text_ids.shape[1]
        self._touched[row] = max(self._touched[row], past + count)
        binding = self._backend.session("backbone").io_binding()
        binding.bind_cpu_input("embeddings", embeddings)
        binding.bind_cpu_input("past_lengths", np.array([past], np.int64))
        binding.bind_cpu_input("new_lengths", np.array([count], np.int64))
        logits = self._buffer((1, self._model.vocab_size), np.float32)
        self._bind_state(binding, row, 1, logits)
        self._backend.run_bound("backbone", binding)
        self.lengths[row] += count
        return logits.read()[0]

    def _reserve(self, rows: int, positions: int) -> None:
        """Memory for this many rows, and this many positions in each."""
        if rows <= self._width and positions <= self._capacity:
            return
        width, capacity = self._width, self._capacity_for(positions)
        while width < rows:
            width = min(2 * width, self.rows)
        # all before any is replaced: should memory not suffice, the rows are as they were
        caches = self._new_caches(width, capacity)
        for new, old in zip(caches, self._caches, strict=True):
            for row in range(self._width):
                new.copy_row(row, row, int(self.lengths[row]), old)
        self._caches, self._width, self._capacity = caches, width, capacity
        self._touched[:] = self.lengths
        self._forget_steps()  # bound to the addresses of the old ones

    def _capacity_for(self, positions: int) -> int:
        if positions > self.capacity:
            raise ContextError(
                f"{positions} positions do not fit the context of {self.capacity}. "
                "Shorten the prompt, drop old turns, or ask for a shorter answer."
            )
        capacity = self._capacity
        while capacity < positions:
            capacity *= 2
        return min(capacity, self.capacity)

    def _new_caches(self, width: int, capacity: int) -> list[Buffer]:
        shape = (width, self._model.kv_heads, capacity, self._model.head_dim)
        return [self._buffer(shape, self._cache_dtype) for _ in self._names]

    def _bind_step(self, first: int, count: int) -> _Step:
        model, buffer = self._model, self._buffer
        text_ids = buffer((count, 1), np.int64)
        codes = buffer((count, 1, model.n_q, model.group_size), np.int64)
        embeddings = buffer((count, 1, model.hidden_size), self._dtype)
        past, new = buffer((count,), np.int64), buffer((count,), np.int64)
        new.write(np.ones(count, np.int64))
        logits = buffer((count, model.vocab_size), np.float32)

        sessions = [self._backend.session(piece) for piece in STEP_PIECES]
        embed, backbone = (session.io_binding() for session in sessions)
        text_ids.as_input(embed, "text_ids")
        codes.as_input(embed, "codes")
        embeddings.as_output(embed, "embeddings")
        embeddings.as_input(backbone, "embeddings")
        past.as_input(backbone, "past_lengths")
        new.as_input(backbone, "new_lengths")
        self._bind_state(backbone, first, count, logits)
        runs = tuple(
            (piece, binding, self._backend.graphs.new_run(piece, session))
            for piece, binding, session in zip(
                STEP_PIECES, (embed, backbone), sessions, strict=True
            )
        )
        return _Step(text_ids, codes, past, logits, runs, (embeddings, new))

    def _bind_state(self, binding: Any, row: int, count: int, logits: Buffer) -> None:
        """Outputs, and the caches of some rows as input and output of the same memory."""
        self._local_hidden.rows(row, count).as_output(binding, "local_hidden")
        logits.as_output(binding, "logits")
        for name, cache in zip(self._names, self._caches, strict=True):
            rows = cache.rows(row, count)
            rows.as_input(binding, name)
            rows.as_output(binding, name.replace("past_", "present_"))

    def _new_patch_decoder(self, first: int, count: int) -> OrtPatchDecoder:
        return OrtPatchDecoder(self._backend, self._local_hidden.rows(first, count))

    def _buffer(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        return self._backend.memory.allocate(shape, dtype)


def _known(made: dict[tuple[int, int], T], rows: tuple[int, int], make: Callable[..., T]) -> T:
    """What was made for these rows; of others, a few are kept."""
    if rows not in made:
        if len(made) == KEPT:
            made.pop(next(iter(made))).release()
        made[rows] = make(*rows)
    return made[rows]


def _port(ports: Sequence[TensorSpec], name: str) -> TensorSpec:
    return next(port for port in ports if port.name == name)

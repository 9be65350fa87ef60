"""Rows on TensorRT: their buffers, contexts and CUDA graphs, and the state of one answer in them.

The key-value cache is one buffer per layer and kind, bound as input and output of the same step. A
row's part of it is contiguous, so a prompt is prefilled in place: the same engine, in a context of
its own, with the addresses of that row alone.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from mimo_edge.runtime.backends.base import Bools, Floats, Ints
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.delay import DelayPattern
from mimo_edge.runtime.backends.trt_context import ALIGNMENT, Context, fitted, size_of
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import PREFILL_LENGTHS, Identity
from mimo_edge.runtime.bundle.errors import ContextError, EngineError, InputError
from mimo_edge.runtime.bundle.manifest import TensorSpec
from numpy.typing import NDArray

DECODE = ("patch_encoder", "backbone", "patch_decoder")
_CACHE = "cache_"  # how the names of the backbone's cache's buffers begin
_PATCH = "patch "  # and of what only the patch decoder has
# of all sub-steps, one after the other, beside the buffers of one
_STAGED = ("sub_step", "uniforms", "codes")
# what a prefill has beside the row's cache; a row's part of other buffers may not be aligned
PREFILL_OWN = (
    ("patch_encoder", ("text_ids", "codes", "embeddings")),
    ("backbone", ("past_lengths", "new_lengths", "local_hidden", "logits")),
)


class Engines(Protocol):
    """What rows need of the backend that made them."""

    bundle: Bundle
    device: CudaDevice
    identity: Identity

    def context(self, piece: str, *, captured: bool = False) -> Context: ...

    def need(self, count: int, what: str) -> None: ...


class RowMemory:
    """Buffers, contexts and graphs for `rows` rows; nothing in it depends on what the rows hold.

    Everything that it needs is checked against the GPU's free memory before any of it is taken.
    """

    def __init__(self, backend: Engines, rows: int) -> None:
        self.rows, self.backend, self.device = rows, backend, backend.device
        self.sub_steps = backend.bundle.model.sub_steps
        self.used = False  # whether an earlier owner may have left something in it
        self.capacity = backend.identity.max_seq
        profile = backend.identity.pieces["patch_encoder"].profiles[0]
        self.chunk: int = profile["text_ids"][2][1]
        self._run_lengths = (*(n for n in PREFILL_LENGTHS if n < self.chunk), self.chunk)
        self._ports: dict[str, TensorSpec] = {}
        self._contexts: dict[str, Context] = {}
        self._graphs: dict[str, Any] = {}
        self._address: dict[str, int] = {}
        self._row_bytes: dict[str, int] = {}
        sizes = self._sizes()
        backend.need(sum(sizes.values()), f"{rows} rows of {self.capacity} patches")
        try:
            for name, size in sizes.items():
                self._address[name] = self.device.allocate(size)
            for piece in DECODE:
                self._contexts[piece] = backend.context(piece, captured=True)
            for piece, _ in PREFILL_OWN:
                self._contexts[f"prefill {piece}"] = backend.context(piece)
            self._bind_decode()
            self.upload("new_lengths", np.ones(rows, np.int64))
            steps = np.arange(self.sub_steps, dtype=np.int64)[:, None]
            self.upload("all sub_step", np.tile(steps, (1, rows)))
        except BaseException:
            self.release()
            raise

    def step(self) -> None:
        """One more position for every row, from the text ids and codes in their buffers."""
        self._run("step", self._enqueue_step, ("patch_encoder", "backbone"))

    def draw(self) -> None:
        """The codes of all sub-steps, from the newest positions and what `all uniforms` holds."""
        self._run("draw", self._enqueue_patch, ("patch_decoder",))

    def _run(self, name: str, work: Callable[[], None], pieces: Sequence[str]) -> None:
        """Once plainly, as TensorRT asks before a capture, and from then on as a graph."""
        if name in self._graphs:
            self.device.launch(self._graphs[name])
            return
        work()
        if all(self._contexts[piece].capturable() for piece in pieces):
            self.device.synchronize()
            self._graphs[name] = self.device.capture(work)

    def _enqueue_step(self) -> None:
        self._contexts["patch_encoder"].enqueue()
        self._contexts["backbone"].enqueue()

    def _enqueue_patch(self) -> None:
        """All runs of the patch decoder, and the copies between them.

        What a run says of the next x is copied and not written in place: TensorRT promises nothing
        of an output in the memory of an input, except for the caches.
        """
        size = {name: self._row_bytes[_PATCH + name] * self.rows for name in (*_STAGED, "x")}

        def staged(name: str, step: int) -> int:
            return self._address[f"all {name}"] + step * size[name]

        here = {name: self._address[_PATCH + name] for name in (*_STAGED, "x", "next")}
        copy, source = self.device.copy, self._address["local_hidden"]
        for step in range(self.sub_steps):
            copy(here["x"], source, size["x"])
            for name in ("sub_step", "uniforms"):
                copy(here[name], staged(name, step), size[name])
            self._contexts["patch_decoder"].enqueue()
            copy(staged("codes", step), here["codes"], size["codes"])
            source = here["next"]

    def upload(self, name: str, array: NDArray[Any]) -> None:
        """Into the buffer of a decode step. Raises InputError for another dtype or shape."""
        port = self._ports[name]
        shape = self._shape(port, self.rows, {"time": 1, "patches": 1})
        self.device.upload(self._address[name], fitted(port, array, shape))

    def download(self, array: NDArray[Any], name: str) -> None:
        assert array.dtype == self._ports[name].dtype, f"{name} is {self._ports[name].dtype}"
        self.device.download(array, self._address[name])

    def forget_patches(self) -> None:
        """Zero the patch decoder's cache, all rows, as `zero` does for a row."""
        for name in self._address:
            if name.startswith(_PATCH + _CACHE):
                self.device.zero(self._address[name], self.rows * self._row_bytes[name])

    def zero(self, row: int, first: int, last: int) -> None:
        """Zero positions of a row's caches: a mask does not hide what is NaN or infinite."""
        for address, size in self._segments(row, first, last):
            self.device.zero(address, size)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a row's caches begin with the first positions of another's."""
        pairs = zip(
            self._segments(source, 0, length), self._segments(target, 0, length), strict=True
        )
        for (start, size), (to, _) in pairs:
            self.device.copy(to, start, size)

    def prefill_chunk(self, row: int, past: int, text_ids: Ints, codes: Ints) -> int:
        """Append positions [T], [T, K, G], at least one, to a row that holds `past`.

        They are handed over in runs of few different lengths, for which kernels are compiled once.
        What is behind the last position is written into the cache, too: the next run overwrites it,
        and until then no position sees it. Returns how many positions of the row are written.
        """
        start = 0
        while start < len(text_ids):
            length = run_length(len(text_ids) - start, self.capacity - past, self._run_lengths)
            part = slice(start, start + length)
            self._prefill_run(row, past, length, text_ids[part], codes[part])
            start, past = start + length, past + length
        return past

    def _prefill_run(self, row: int, past: int, length: int, text_ids: Ints, codes: Ints) -> None:
        """One run, filled up with its last position: a mask does not hide NaN, and what the model
        makes of that is as good as the rest."""
        count, spec = len(text_ids), self.backend.bundle.piece
        axes = {"time": length, "patches": length}
        for name, array in (
            ("text_ids", np.pad(text_ids, (0, length - count), mode="edge")),
            ("codes", np.pad(codes, ((0, length - count), (0, 0), (0, 0)), mode="edge")),
            ("past_lengths", np.array([past], np.int64)),
            ("new_lengths", np.array([count], np.int64)),
        ):
            port = self._ports[f"prefill {name}"]
            shaped = fitted(port, array, self._shape(port, 1, axes))
            self.device.upload(self._address[f"prefill {name}"], shaped)
        embed, backbone = (self._contexts[f"prefill {piece}"] for piece, _ in PREFILL_OWN)
        for port in (*spec("patch_encoder").inputs, *spec("patch_encoder").outputs):
            shape = self._shape(port, 1, axes) if port.name != "embeddings" else None
            embed.bind(port.name, self._address[f"prefill {port.name}"], shape)
        for port in spec("backbone").inputs:
            address = self._prefill_address(port.name, row)
            backbone.bind(port.name, address, self._shape(port, 1, axes))
        for port in spec("backbone").outputs:
            backbone.bind(port.name, self._prefill_address(port.name, row))
        embed.enqueue()
        backbone.enqueue()
        # the patch decoder looks for the newest states of all rows in one place
        newest, size = self._row("local_hidden", row), self._row_bytes["local_hidden"]
        self.device.copy(newest, self._address["prefill local_hidden"], size)
        self.device.synchronize()  # the next chunk binds the contexts anew

    def release(self) -> None:
        """Give everything back to the GPU: graphs and buffers, and contexts, which nothing uses
        any more by then."""
        self.device.release(self._address.values(), self._graphs.values())
        self.forget_contexts()
        self._graphs, self._address = {}, {}

    def forget_contexts(self) -> None:
        """Let go of what belongs to the engines; the device frees the rest as it closes."""
        self._contexts.clear()

    def _sizes(self) -> dict[str, int]:
        """Bytes of every buffer. What is an input here and an output there has one."""
        sizes: dict[str, int] = {}
        for piece in DECODE:
            spec = self.backend.bundle.piece(piece)
            for port in (*spec.inputs, *spec.outputs):
                name = _buffer_name(piece, port.name)
                shape = self._shape(port, self.rows, {"time": 1, "patches": 1})
                self._row_bytes[name] = size_of(port, shape) // self.rows
                sizes[name], self._ports[name] = size_of(port, shape), port
        for name in (n for n in sizes if n.startswith(_CACHE)):
            if self.rows > 1 and self._row_bytes[name] % ALIGNMENT:
                raise EngineError(
                    f"a row of {name} has {self._row_bytes[name]} bytes, so that the second would "
                    f"not begin at a multiple of {ALIGNMENT}. Build with another --max-seq, such "
                    "as a power of two, or use one row at a time."
                )
        for name in _STAGED:
            port = self._ports[_PATCH + name]
            staged = TensorSpec(port.name, port.dtype, (self.sub_steps, *port.axes))
            self._ports[f"all {name}"] = staged
            sizes[f"all {name}"] = self.sub_steps * sizes[_PATCH + name]
        for piece, names in PREFILL_OWN:
            spec = self.backend.bundle.piece(piece)
            for port in (*spec.inputs, *spec.outputs):
                if port.name in names:
                    shape = self._shape(port, 1, {"time": self.chunk, "patches": self.chunk})
                    name = f"prefill {port.name}"
                    sizes[name], self._ports[name] = size_of(port, shape), port
        return sizes

    def _bind_decode(self) -> None:
        """Bind the contexts of the decode step to the buffers once and for all."""
        for piece in DECODE:
            context, spec = self._contexts[piece], self.backend.bundle.piece(piece)
            for port in spec.inputs:
                shape = self._shape(port, self.rows, {"time": 1, "patches": 1})
                context.bind(port.name, self._address[_buffer_name(piece, port.name)], shape)
            for port in spec.outputs:
                context.bind(port.name, self._address[_buffer_name(piece, port.name)])

    def _shape(self, port: TensorSpec, rows: int, axes: dict[str, int]) -> tuple[int, ...]:
        sizes = {"batch": rows, "capacity": self.capacity, **axes}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.axes)

    def _prefill_address(self, port: str, row: int) -> int:
        own = self._address.get(f"prefill {port}")
        return self._row(_shared_name(port), row) if own is None else own

    def _segments(self, row: int, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Address and bytes of some positions in each cache: one piece for each head."""
        heads = self.backend.bundle.model.kv_heads
        for name in (n for n in self._address if n.startswith(_CACHE)):
            head = self._row_bytes[name] // heads
            position = head // self.capacity
            for index in range(heads):
                start = self._row(name, row) + index * head
                yield start + first * position, (last - first) * position

    def _row(self, name: str, row: int) -> int:
        """The address of a row's part of a buffer."""
        return self._address[name] + row * self._row_bytes[name]


class TrtRowStates:
    """Decode state of several rows; see `backends.base.RowStates`.

    `give_back` takes the memory when nobody uses these states any more.
    """

    def __init__(self, memory: RowMemory, give_back: Callable[[RowMemory], None]) -> None:
        self.rows, self.capacity = memory.rows, memory.capacity
        self.lengths = np.zeros(memory.rows, np.int64)
        # positions of a row that may not be zero: all, of what others have used before
        self._touched = np.full(memory.rows, memory.capacity if memory.used else 0, np.int64)
        memory.used = True
        self._memory, self._model = memory, memory.backend.bundle.model
        self._pattern = DelayPattern(self._model)
        # also if the caller forgets to close
        self._closed = weakref.finalize(self, give_back, memory)
        self._closed.atexit = False

    def extend(self, row: int, text_ids: Ints, codes: Ints) -> Floats:
        start = int(self.lengths[row])
        if start + len(text_ids) > self.capacity:
            raise ContextError(
                f"{start + len(text_ids)} positions do not fit the {self.capacity} that the "
                "engines hold. Shorten the prompt, or build with a larger --max-seq."
            )
        self.truncate(row, start)
        try:
            for at in range(0, len(text_ids), self._memory.chunk):
                part = slice(at, at + self._memory.chunk)
                past, count = int(self.lengths[row]), len(text_ids[part])
                self._touched[row] = self.capacity  # should it fail
                written = self._memory.prefill_chunk(row, past, text_ids[part], codes[part])
                self._touched[row] = written
                self.lengths[row] += count
        except BaseException:
            self.lengths[row] = start
            raise
        logits = np.zeros(self._model.vocab_size, np.float32)
        self._memory.download(logits, "prefill logits")
        return logits

    def truncate(self, row: int, length: int) -> None:
        self.lengths[row] = min(length, self.lengths[row])
        first, last = int(self.lengths[row]), int(self._touched[row])
        if last > first:
            self._memory.zero(row, first, last)
        self._touched[row] = first

    def copy(self, source: int, target: int, length: int) -> None:
        self.truncate(target, 0)
        self._memory.copy(source, target, length)
        self.lengths[target] = self._touched[target] = length

    def step(self, first: int, text_ids: Ints, codes: Ints, active: Bools) -> Floats:
        if self.lengths.max() + 1 > self.capacity:
            raise ContextError(f"a row has reached the {self.capacity} positions of the engines")
        memory = self._memory
        memory.upload("text_ids", self._all_rows(first, text_ids))
        memory.upload("codes", self._all_rows(first, codes))
        memory.upload("past_lengths", self.lengths)
        np.maximum(self._touched, self.lengths + 1, out=self._touched)
        memory.step()
        rows = slice(first, first + len(active))
        self.lengths[rows] += active
        logits = np.zeros((self.rows, self._model.vocab_size), np.float32)
        memory.download(logits, "logits")
        return logits[rows]

    def draw_codes(
        self, first: int, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats
    ) -> Ints:
        memory = self._memory
        memory.upload("all uniforms", self._pattern.spread(self._all_rows(first, uniforms)))
        memory.upload(_PATCH + "temperature", self._all_rows(first, temperature))
        memory.upload(_PATCH + "top_k", self._all_rows(first, top_k))
        memory.upload(_PATCH + "top_p", self._all_rows(first, top_p))
        memory.draw()
        drawn = np.zeros((memory.sub_steps, self.rows, self._model.n_q), np.int64)
        memory.download(drawn, "all codes")
        codes = self._pattern.collect(drawn)
        if codes.min() < 0:
            memory.forget_patches()
        return codes[first : first + len(uniforms)]

    def close(self) -> None:
        self._closed()

    def _all_rows(self, first: int, array: NDArray[Any]) -> NDArray[Any]:
        """The engines step all rows: those that are not given get zeros."""
        if first + len(array) > self.rows:
            raise InputError(f"{len(array)} rows from row {first} on, and there is {self.rows}")
        whole = np.zeros((self.rows, *array.shape[1:]), array.dtype)
        whole[first : first + len(array)] = array
        return whole


def run_length(count: int, room: int, lengths: Sequence[int]) -> int:
    """The length of the next run of a prefill, of these: the smallest that holds all positions that
    are left, or the largest. It must fit the room that is left in the cache, at the end of which
    positions go in shorter runs, one at a time in the end."""
    fitting = [length for length in lengths if length <= room]
    return next((length for length in fitting if length >= count), fitting[-1])


def _buffer_name(piece: str, port: str) -> str:
    return (_PATCH if piece == "patch_decoder" else "") + _shared_name(port)


def _shared_name(port: str) -> str:
    """Past and present of a cache are one buffer."""
    cache = port.startswith(("past_keys", "past_values", "present_"))
    return _CACHE + port.split("_", 1)[1] if cache else port

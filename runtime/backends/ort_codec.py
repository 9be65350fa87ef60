"""State of the codec's streams on ONNX Runtime: keys and values, which stay on the device.

Those of `mel_stream` are bound as input and output of one buffer and written in place. Where the
graph takes a ring that is shorter than all of it (engines/ort/ring.py), it begins with FIRST_FRAMES
and doubles until the first lap is over, because attention computes over its whole length. Those of
`vocoder_stream` are few and move up with every call: two sets, read and written by turns.
"""

from typing import Any

import numpy as np
from mimo_edge.runtime.backends.base import Feed, Floats
from mimo_edge.runtime.backends.ort_memory import Buffer
from mimo_edge.runtime.backends.ort_sessions import Sessions
from mimo_edge.runtime.bundle.manifest import PieceSpec, TensorSpec
from mimo_edge.runtime.bundle.stream_sizes import MOST_FRAMES, RING_FRAMES, most_slots
from numpy.typing import NDArray

FIRST_FRAMES = 64  # that a ring has room for at first
ALL_FRAMES = RING_FRAMES + MOST_FRAMES
_ROOMS = (4, MOST_FRAMES)  # beyond the ring's end: for calls of a patch, and for any
Caches = dict[str, Buffer]


class OrtCodecStates:
    """See `mimo_edge.runtime.backends.base.CodecStates`."""

    def __init__(self, backend: Sessions, rows: int) -> None:
        self.rows, self._backend = rows, backend
        self._mel, self._vocoder = (
            backend.bundle.piece(name) for name in ("mel_stream", "vocoder_stream")
        )
        ports = {port.name: port for port in (*self._mel.inputs, *self._vocoder.inputs)}
        last, past = ports["past_last"], ports["past_positions"]
        self.last_shape = tuple(int(axis) for axis in last.axes[1:])
        self.remembered = int(past.axes[1])
        self._frames = FIRST_FRAMES  # that a short ring has room for
        self._ring = self._new_caches(self._mel, FIRST_FRAMES)
        self._window, self._spare = (self._new_caches(self._vocoder) for _ in range(2))
        self._bindings: dict[tuple[str, int], Any] = {}  # by piece and the caches that it reads

    def mel(self, feed: Feed) -> tuple[Floats, Floats, Floats]:
        self._reserve(feed["positions"], feed["codes"].shape[2])
        mel, statistics, last = self._run("mel_stream", feed, self._ring, self._ring)
        return mel, statistics, last

    def frames(self, feed: Feed) -> tuple[Floats, Floats]:
        frames, weight = self._run("vocoder_stream", feed, self._window, self._spare)
        self._window, self._spare = self._spare, self._window
        return frames, weight

    def clear(self, row: int) -> None:
        for cache in (*self._ring.values(), *self._window.values(), *self._spare.values()):
            cache.zero(row, 0, cache.shape[2])

    def close(self) -> None:
        self._bindings.clear()
        self._ring, self._window, self._spare = {}, {}, {}

    def _reserve(self, positions: NDArray[Any], new: int) -> None:
        """Room for `new` frames after those of before [rows]; from the second lap on, that is all
        of the ring, and what a call can write beyond its end."""
        whole = RING_FRAMES + next(room for room in _ROOMS if room >= new)
        wanted, frames = min(int(positions.max()) + new, whole), self._frames
        while frames < wanted:
            frames = min(2 * frames, whole)
        if frames == self._frames or not any(map(_short, self._mel.inputs)):
            return
        # all before any is replaced: should memory not suffice, the streams are as they were
        ring = self._new_caches(self._mel, frames)
        for name, cache in ring.items():
            for row in range(self.rows):
                cache.copy_row(row, row, self._ring[name].shape[2], self._ring[name])
        self._ring, self._frames = ring, frames
        self._bindings.clear()  # they have the addresses of the old one

    def _run(self, piece: str, feed: Feed, before: Caches, after: Caches) -> list[NDArray[Any]]:
        """One call; the outputs that are no caches, on the host."""
        outputs = [p.name for p in self._backend.bundle.piece(piece).outputs]
        results = [name for name in outputs if _kept(name) not in before]
        key = piece, id(before)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._backend.session(piece).io_binding()
            for name in results:  # they are told first
                binding.bind_output(name)
            for name, cache in before.items():
                cache.as_input(binding, name)
                after[name].as_output(binding, name.replace("past_", "present_"))
        for name, array in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in results:  # anew, as large as they will be this time
            binding.bind_output(name)
        self._backend.run_bound(piece, binding)
        # in the order in which they were bound; only those that are no caches leave the device
        return [value.numpy() for value in binding.get_outputs()[: len(results)]]

    def _new_caches(self, spec: PieceSpec, frames: int = ALL_FRAMES) -> Caches:
        """All zero. A short ring has room for so many frames."""

        def size(axis: int | str) -> int:
            if isinstance(axis, int):
                return axis
            most = most_slots(axis)
            return self.rows if most is None else most * frames // ALL_FRAMES

        return {
            port.name: self._backend.memory.allocate(
                tuple(map(size, port.axes)), np.dtype(port.dtype)
            )
            for port in spec.inputs
            if port.name.startswith(("past_keys", "past_values"))
        }


def _short(port: TensorSpec) -> bool:
    """Whether a cache may be shorter than its ring."""
    return any(most_slots(axis) is not None for axis in port.axes)


def _kept(output: str) -> str:
    return output.replace("present_", "past_")

"""State of the codec's streams on ONNX Runtime: keys and values, which stay on the device.

Those of `mel_stream` are bound as input and output of one buffer and written in place. Those of
`vocoder_stream` are few and move up with every call: two sets, read and written by turns.
"""

from typing import Any

import numpy as np
from mimo_edge.runtime.backends.base import Feed, Floats
from mimo_edge.runtime.backends.ort_memory import Buffer
from mimo_edge.runtime.backends.ort_sessions import Sessions
from mimo_edge.runtime.bundle.manifest import PieceSpec, TensorSpec
from numpy.typing import NDArray


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
        self._ring = self._new_caches(self._mel)
        self._window, self._spare = (self._new_caches(self._vocoder) for _ in range(2))

    def mel(self, feed: Feed) -> tuple[Floats, Floats, Floats]:
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
        self._ring, self._window, self._spare = {}, {}, {}

    def _run(
        self,
        piece: str,
        feed: Feed,
        before: dict[str, Buffer],
        after: dict[str, Buffer],
    ) -> list[NDArray[Any]]:
        """One call; the outputs that are no caches, on the host."""
        binding = self._backend.session(piece).io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        outputs = [p.name for p in self._backend.bundle.piece(piece).outputs]
        results = [name for name in outputs if _kept(name) not in before]
        for name in results:
            binding.bind_output(name)
        for name, cache in before.items():
            cache.as_input(binding, name)
            after[name].as_output(binding, name.replace("past_", "present_"))
        self._backend.run_bound(piece, binding)
        # in the order in which they were bound; only those that are no caches leave the device
        return [value.numpy() for value in binding.get_outputs()[: len(results)]]

    def _new_caches(self, spec: PieceSpec) -> dict[str, Buffer]:
        return {
            port.name: self._backend.memory.allocate(self._shape(port), np.dtype(port.dtype))
            for port in spec.inputs
            if port.name.startswith(("past_keys", "past_values"))
        }

    def _shape(self, port: TensorSpec) -> tuple[int, ...]:
        return tuple(self.rows if isinstance(axis, str) else axis for axis in port.axes)


def _kept(output: str) -> str:
    return output.replace("present_", "past_")

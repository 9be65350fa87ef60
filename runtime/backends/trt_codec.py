"""State of the codec's streams on TensorRT: keys and values, and buffers for the largest call.

The cache of `mel_stream` is bound as input and output of one buffer. That of `vocoder_stream` moves
up with every call: two sets, read and written by turns.
"""

import weakref
from typing import Any

import numpy as np
from mimo_edge.runtime.backends.base import Feed, Floats
from mimo_edge.runtime.backends.trt_context import Context, fitted, size_of
from mimo_edge.runtime.backends.trt_rows import Engines
from mimo_edge.runtime.bundle.manifest import PieceSpec, TensorSpec
from numpy.typing import NDArray

_PAST, _PRESENT, _SPARE = "past_", "present_", "spare_"
_CACHES = ("past_keys", "past_values")
MEL, VOCODER = "mel_stream", "vocoder_stream"


class TrtCodecStates:
    """See `mimo_edge.runtime.backends.base.CodecStates`."""

    def __init__(self, backend: Engines, rows: int) -> None:
        self.rows, self._backend, self._device = rows, backend, backend.device
        self._specs = {piece: backend.bundle.piece(piece) for piece in (MEL, VOCODER)}
        ports = {port.name: port for spec in self._specs.values() for port in spec.inputs}
        last, past = ports["past_last"], ports["past_positions"]
        self.last_shape = tuple(int(axis) for axis in last.axes[1:])
        self.remembered = int(past.axes[1])
        self._contexts: dict[str, Context] = {}
        self._sizes: dict[tuple[str, str], int] = {}
        self._address: dict[tuple[str, str], int] = {}
        try:
            for piece, spec in self._specs.items():
                self._contexts[piece] = backend.context(piece)
                self._sizes |= self._sizes_of(piece, spec)
            backend.need(sum(self._sizes.values()), f"{rows} streams of the codec")
            for name, size in self._sizes.items():
                self._address[name] = self._device.allocate(size)  # and zero it
            # also a state that is dropped gives its memory back
            self._end = weakref.finalize(
                self, self._device.release, tuple(self._address.values()), ()
            )
            self._end.atexit = False
        except BaseException:
            self._device.release(self._address.values(), ())
            raise

    def mel(self, feed: Feed) -> tuple[Floats, Floats, Floats]:
        mel, statistics, last = self._run(MEL, feed)
        return mel, statistics, last

    def frames(self, feed: Feed) -> tuple[Floats, Floats]:
        frames, weight = self._run(VOCODER, feed)
        for past in [name for name in self._address if name[1].startswith(_PAST)]:
            spare = (past[0], past[1].replace(_PAST, _SPARE))
            if spare in self._address:  # what was written is what the next call reads
                address = self._address
                address[past], address[spare] = address[spare], address[past]
        return frames, weight

    def clear(self, row: int) -> None:
        for (piece, port), size in self._sizes.items():
            if port.startswith((*_CACHES, _SPARE)):
                share = size // self.rows
                self._device.zero(self._address[piece, port] + row * share, share)

    def close(self) -> None:
        self.forget_contexts()
        self._end()

    def forget_contexts(self) -> None:
        """Let go of what belongs to the engines; the device frees the rest as it closes."""
        self._contexts.clear()

    def _run(self, piece: str, feed: Feed) -> list[NDArray[Any]]:
        """One call; the outputs that are no caches, on the host."""
        context, spec = self._contexts[piece], self._specs[piece]
        for port in spec.inputs:
            given = feed.get(port.name)
            address = self._address[piece, port.name]
            shape = self._cache_shape(port) if given is None else given.shape
            context.bind(port.name, address, shape)
            if given is not None:
                self._device.upload(address, fitted(port, given, given.shape))
        for port in spec.outputs:
            context.bind(port.name, self._address[piece, self._written(piece, port.name)])
        context.enqueue()
        found = []
        for port in spec.outputs:
            if self._written(piece, port.name) == port.name:
                array = np.zeros(context.shape(port.name), port.dtype)
                self._device.download(array, self._address[piece, port.name])
                found.append(array)
        return found

    def _sizes_of(self, piece: str, spec: PieceSpec) -> dict[tuple[str, str], int]:
        """Bytes of every buffer of a piece, for the largest call."""
        ranges, context = self._backend.identity.pieces[piece].profiles[0], self._contexts[piece]
        shapes = {}
        for port in spec.inputs:
            most = ranges[port.name][2]
            shapes[port.name] = (self.rows, *most[1:])
            context.reshape(port.name, shapes[port.name])
        sizes = {(piece, port.name): size_of(port, shapes[port.name]) for port in spec.inputs}
        for port in spec.outputs:
            name = self._written(piece, port.name)
            sizes.setdefault((piece, name), size_of(port, context.shape(port.name)))
        return sizes

    @staticmethod
    def _written(piece: str, output: str) -> str:
        """The buffer that an output goes to."""
        past = output.replace(_PRESENT, _PAST)
        if not past.startswith(_CACHES):
            return output
        return past if piece == MEL else past.replace(_PAST, _SPARE)

    def _cache_shape(self, port: TensorSpec) -> tuple[int, ...]:
        return tuple(self.rows if isinstance(axis, str) else axis for axis in port.axes)

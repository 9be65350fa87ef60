"""TensorRT backend, for TensorRT for RTX and the classic product: one Python API.

Engines are loaded once. All contexts run on one stream, one after the other, so they share one
piece of scratch memory. The buffers of a set of rows (`trt_rows`) outlive the answer that they were
made for: who asks for as many rows next takes them over.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import numpy as np
from mimo_edge.runtime.backends.audio_calls import AudioCalls
from mimo_edge.runtime.backends.base import Feed, Floats, Ints
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.finite import check_finite
from mimo_edge.runtime.backends.trt_codec import TrtCodecStates
from mimo_edge.runtime.backends.trt_context import (
    Context,
    Engine,
    fitted,
    load_module,
    size_of,
)
from mimo_edge.runtime.backends.trt_rows import RowMemory, TrtRowStates
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine_folders import CACHE_ONLY, Trust, Wanted, find
from mimo_edge.runtime.bundle.errors import InputError, ResourceError
from mimo_edge.runtime.bundle.manifest import PIECES, PieceSpec
from numpy.typing import NDArray

AUDIO_PIECES = ("mel", "tokenizer_encoder", "tokenizer_decoder")


class TrtBackend(AudioCalls):
    """Runs a bundle's engines, of those that `trust` allows. `trt` and `device` are replaced in
    tests."""

    def __init__(
        self,
        bundle: Bundle,
        product: str,
        trt: Any = None,
        device: CudaDevice | None = None,
        trust: Trust = CACHE_ONLY,
    ) -> None:
        self.bundle, self._product, self._trust = bundle, product, trust
        self._trt = trt or load_module(product)
        self.device = device or CudaDevice()
        self._engines: dict[str, Engine] = {}
        self._buffers: dict[tuple[str, str], int] = {}
        self._contexts: dict[str, Context] = {}
        self._rows: list[RowMemory] = []  # of all rows that were handed out
        self._idle: list[RowMemory] = []  # those of them that nobody uses
        self._streams: WeakSet[TrtCodecStates] = WeakSet()  # that are in use
        try:
            self._open()
        except BaseException:
            self._close()
            raise

    def _open(self) -> None:
        capability = self.device.capability()
        wanted = Wanted(self._product, self._trt.__version__, capability)
        self.folder, manifest = find(self.bundle, wanted, self._trust)
        self.identity = manifest.identity
        # also a plan for several compute capabilities holds its weights once
        weights = sum(plan.file.bytes for plan in manifest.plans.values())
        self.need(weights, "the engines")
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._runtime = self._trt.Runtime(self._logger)
        for piece in PIECES:
            path, spec = self.folder / f"{piece}.plan", self.bundle.piece(piece)
            self._engines[piece] = Engine(self._trt, self._runtime, path, spec)
        self.bundle.check_unchanged()  # while all that was read
        scratch = max(1, *(loaded.scratch_bytes for loaded in self._engines.values()))
        self.need(scratch, "running the engines")
        self._scratch = self.device.allocate(scratch)

    @property
    def slots(self) -> int:
        """Rows that a step holds: what the engines were built for."""
        return self.identity.max_batch

    def load(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            if piece in AUDIO_PIECES:
                self._audio_context(piece)

    def decode(self, codes: Ints, lengths: Ints) -> Floats:
        """Row by row, each at its own length."""
        samples = self.bundle.model.samples_per_frame
        wavs = np.zeros((len(codes), codes.shape[2] * samples), np.float32)
        for row, length in enumerate(lengths):
            feed = {"codes": codes[row : row + 1, :, :length], "lengths": lengths[row : row + 1]}
            wavs[row, : length * samples] = self.run("tokenizer_decoder", feed)[0]
        return check_finite(wavs, "tokenizer_decoder")

    def new_codec_rows(self, rows: int) -> TrtCodecStates:
        self._check_rows(rows)
        states = TrtCodecStates(self, rows)
        self._streams.add(states)
        return states

    def new_rows(self, rows: int) -> TrtRowStates:
        self._check_rows(rows)
        memory = next((idle for idle in self._idle if idle.rows == rows), None)
        if memory is None:
            for idle in self._idle:  # made for another number of rows: in the way now
                self._rows.remove(idle)
                idle.release()
            self._idle.clear()
            memory = RowMemory(self, rows)
            self._rows.append(memory)
        else:
            self._idle.remove(memory)
        return TrtRowStates(memory, self._give_back)

    def _check_rows(self, rows: int) -> None:
        if rows > self.identity.max_batch:
            raise InputError(
                f"{rows} rows asked for, the engines hold {self.identity.max_batch}. "
                f"Build them with --max-batch {rows}."
            )

    def context(self, piece: str, *, captured: bool = False) -> Context:
        """A fresh execution context of a piece; `captured` if it is to be part of a CUDA graph."""
        return self._engines[piece].context(self.device, self._scratch, captured=captured)

    def engine(self, piece: str) -> Engine:
        """The loaded engine of a piece."""
        return self._engines[piece]

    def open_engine(self, path: Path, spec: PieceSpec) -> Engine:
        """Load one more engine, which the caller has made and may let go of."""
        self.need(path.stat().st_size, f"the engine {path.name}")
        return Engine(self._trt, self._runtime, path, spec)

    def need(self, count: int, what: str) -> None:
        """Refuse what the GPU has no memory for, before any of it is taken."""
        free = self.device.free_bytes()
        if count > free:
            raise ResourceError(
                f"{what} need {count / 1e6:.1f} MB, the GPU has {free / 1e6:.1f} MB free. "
                "Use fewer rows, a smaller --max-seq or a smaller precision."
            )

    def describe(self) -> str:
        gpu = self.device.capability()
        return f"{self._product} {self._trt.__version__} on compute capability {gpu}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        """Nothing may be running when contexts and engines go, and they go before the memory."""
        try:
            self.device.synchronize()
        finally:
            for memory in self._rows:
                memory.forget_contexts()
            for states in self._streams:
                states.forget_contexts()
            self._rows.clear()
            self._idle.clear()
            self._contexts.clear()
            self._engines.clear()
            self.device.close()

    def _give_back(self, memory: RowMemory) -> None:
        if memory in self._rows:  # not after the backend was closed
            self._idle.append(memory)

    def run(self, name: str, feed: Feed) -> NDArray[Any]:
        """Of an audio piece: upload, run, download its only output."""
        context, spec = self._audio_context(name), self.bundle.piece(name)
        for port in spec.inputs:
            address, array = self._buffers[name, port.name], feed[port.name]
            context.bind(port.name, address, array.shape)
            self.device.upload(address, fitted(port, array, array.shape))
        (output,) = spec.outputs
        context.enqueue()
        result = np.zeros(context.shape(output.name), output.dtype)
        self.device.download(result, self._buffers[name, output.name])
        return result

    def _audio_context(self, piece: str) -> Context:
        """The piece's context, with buffers for the largest call its engine takes."""
        if piece not in self._contexts:
            context, spec = self.context(piece), self.bundle.piece(piece)
            ranges = self.identity.pieces[piece].profiles[0]
            for port in spec.inputs:
                context.reshape(port.name, ranges[port.name][2])
            shapes = {p.name: ranges[p.name][2] for p in spec.inputs}
            shapes |= {p.name: context.shape(p.name) for p in spec.outputs}
            ports = (*spec.inputs, *spec.outputs)
            sizes = {p.name: size_of(p, shapes[p.name]) for p in ports}
            self.need(sum(sizes.values()), f"buffers of {piece}")
            for port in ports:
                self._buffers[piece, port.name] = self.device.allocate(sizes[port.name])
                context.bind(port.name, self._buffers[piece, port.name])
            self._contexts[piece] = context
        return self._contexts[piece]

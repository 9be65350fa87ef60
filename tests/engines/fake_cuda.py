"""A stand-in for `cuda.bindings.runtime`: the calls of `backends.cuda`, on host memory.

Every call is held against the signature of the real function, which is installed without a GPU.
The stream is as asynchronous as CUDA permits: nothing on it happens before it is waited for, so
that a source that changes too early, a buffer that is freed too early, or a result that is read too
early is an error here and not a rare one on somebody's GPU.
"""

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import runtime as real

Work = Callable[[], None]
OK = real.cudaError_t.cudaSuccess


class FakeCuda:
    """The module. `calls` records names and sizes; `memory_bytes` is the whole GPU."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaDeviceAttr = real.cudaDeviceAttr
    cudaStreamNonBlocking = real.cudaStreamNonBlocking

    def __init__(self, memory_bytes: int = 1 << 32, sm: str = "8.9") -> None:
        self.memory_bytes, self.sm = memory_bytes, sm
        self.calls: list[tuple[Any, ...]] = []
        self.blocks: dict[int, np.ndarray] = {}  # address -> content
        self.queue: list[Work] = []
        self.recording: list[Work] | None = None
        self.graphs: dict[int, list[Work]] = {}  # captured, not instantiated
        self.executables: dict[int, list[Work]] = {}
        self.streams: set[int] = set()
        self.failing: dict[str, Any] = {}  # function -> the error that it returns
        self._next = 1 << 20
        self._handles = 100

    def __getattribute__(self, name: str) -> Any:
        """Calls go through the real signature; arguments of the wrong kind are refused."""
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def call(*args: Any) -> tuple[Any, ...]:
            bound = inspect.signature(getattr(real, name)).bind(*args)
            for parameter, given in bound.arguments.items():
                wanted = ENUMS.get(parameter, int)
                assert isinstance(given, wanted), f"{name}: {parameter} is {given!r}"
            if name in self.failing:
                return (self.failing[name], *[None] * (len(RESULTS.get(name, ()))))
            return value(*args)

        return call

    @property
    def used(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def names(self) -> list[str]:
        """Of the calls, in their order."""
        return [call[0] for call in self.calls]

    def leaks(self) -> dict[str, Any]:
        """What is still held."""
        held = {
            "memory": list(self.blocks),
            "graphs": list(self.graphs),
            "executables": list(self.executables),
            "streams": list(self.streams),
        }
        return {name: value for name, value in held.items() if value}

    def view(self, address: int, count: int) -> np.ndarray:
        """Bytes behind an address, which may lie inside a block."""
        for start, block in self.blocks.items():
            if start <= address and address + count <= start + len(block):
                return block[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address} are in no buffer")

    def enqueue(self, work: Work) -> None:
        """Put work on the stream, or into the graph that is being captured."""
        (self.queue if self.recording is None else self.recording).append(work)

    def handle(self) -> int:
        self._handles += 1
        return self._handles

    # the module's functions

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == real.cudaStreamNonBlocking, "the default stream synchronises with it"
        stream = self.handle()
        self.streams.add(stream)
        return OK, stream

    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> tuple[Any, ...]:
        major = attr == real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return OK, int(self.sm.split(".")[0 if major else 1])

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.memory_bytes - self.used, self.memory_bytes

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        assert size > 0 and self.recording is None, "cudaMalloc in a capture"
        if self.used + size > self.memory_bytes:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        address, self._next = self._next, self._next + -(-size // 512) * 512 + 512  # and a gap
        self.blocks[address] = np.full(size, 0xAB, np.uint8)  # CUDA does not zero it
        self.calls.append(("malloc", address, size))
        return OK, address

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        self.enqueue(lambda: self.view(address, count).fill(value))
        return (OK,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: Any, stream: int
    ) -> tuple[Any, ...]:
        assert stream in self.streams
        inside = kind == real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        assert inside or self.recording is None, "a graph would keep the address of a host array"
        if kind == real.cudaMemcpyKind.cudaMemcpyHostToDevice:
            before = ctypes.string_at(src, count)

            def upload() -> None:
                content = ctypes.string_at(src, count)
                assert content == before, "the source changed before the stream came to it"
                self.view(dst, count)[:] = np.frombuffer(content, np.uint8)

            self.view(dst, count)
            self.calls.append(("upload", dst, count))
            self.queue.append(upload)
        elif inside:
            if self.recording is None:
                self.calls.append(("copy", dst, count))
            assert abs(dst - src) >= count, "the ends of a copy overlap"

            def copy() -> None:
                self.view(dst, count)[:] = self.view(src, count)

            self.view(dst, count), self.view(src, count)
            self.enqueue(copy)
        else:
            assert kind == real.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self.view(src, count)
            self.calls.append(("download", src, count))
            self.queue.append(
                lambda: ctypes.memmove(dst, self.view(src, count).tobytes(), count) and None
            )
        return (OK,)

    def cudaMemset2DAsync(
        self, devPtr: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> tuple[Any, ...]:
        assert 0 < width <= pitch
        for piece in range(height):
            self.cudaMemsetAsync(devPtr + piece * pitch, value, width, stream)
        return (OK,)

    def cudaMemcpy2DAsync(
        self,
        dst: int,
        dpitch: int,
        src: int,
        spitch: int,
        width: int,
        height: int,
        kind: Any,
        stream: int,
    ) -> tuple[Any, ...]:
        assert kind == real.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        assert 0 < width <= min(dpitch, spitch)
        for piece in range(height):
            self.cudaMemcpyAsync(dst + piece * dpitch, src + piece * spitch, width, kind, stream)
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        assert self.recording is None, "a stream may not be waited for while it captures"
        queue, self.queue = self.queue, []
        for work in queue:
            work()
        self.calls.append(("synchronize",))
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        assert stream in self.streams and self.recording is None
        assert not self.queue, "capture begins on an idle stream"
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        assert self.recording is not None
        graph = self.handle()
        self.graphs[graph], self.recording = self.recording, None
        return OK, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        executable = self.handle()
        self.executables[executable] = list(self.graphs[graph])
        self.calls.append(("instantiate", len(self.graphs[graph])))
        return OK, executable

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.graphs[graph]
        return (OK,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams and self.recording is None
        self.queue.extend(self.executables[executable])
        self.calls.append(("launch", len(self.executables[executable])))
        return (OK,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any, ...]:
        assert not self.queue, "a graph is destroyed while it may run"
        del self.executables[executable]
        return (OK,)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        assert not self.queue, "memory is freed while it may be in use"
        del self.blocks[address]
        self.calls.append(("free", address))
        return (OK,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        assert not self.queue
        self.streams.remove(stream)
        return (OK,)


# parameters that are not integers, and what a function returns besides its error
ENUMS: dict[str, type] = {
    "attr": real.cudaDeviceAttr,
    "kind": real.cudaMemcpyKind,
    "mode": real.cudaStreamCaptureMode,
}
RESULTS = {
    name: ("value",)
    for name in (
        "cudaMalloc",
        "cudaStreamCreateWithFlags",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaDeviceGetAttribute",
    )
} | {"cudaMemGetInfo": ("free", "total")}

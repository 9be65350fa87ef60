"""The CUDA calls of the backends, and no others: memory, one stream, graphs.

Everything here is a line or two over NVIDIA's `cuda.bindings.runtime`. The tests run these very
lines on a stand-in for that module, which holds every call against the real one's signature.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, ResourceError
from mimo_edge.runtime.bundle.requirements import of_extra
from numpy.typing import NDArray


class CudaDevice:
    """One GPU with one stream. Addresses are integers. `close` frees what is still allocated."""

    def __init__(self, index: int = 0, bindings: Any = None) -> None:
        self._cuda = bindings or _bindings()
        self._index = index
        self._memory: dict[int, int] = {}  # address -> bytes
        self._graphs: list[Any] = []
        self._in_flight: list[NDArray[Any]] = []  # sources of uploads that may still be running
        self._closed = False
        self._call("cudaSetDevice", index)
        self._stream = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream)

    @property
    def allocated(self) -> int:
        """Bytes held."""
        return sum(self._memory.values())

    def capability(self) -> str:
        """The GPU's compute capability, as in "8.9"."""
        kinds = self._cuda.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", kind, self._index)
            for kind in (
                kinds.cudaDevAttrComputeCapabilityMajor,
                kinds.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return f"{major}.{minor}"

    def free_bytes(self) -> int:
        """Device memory that is not in use."""
        free, _total = self._call("cudaMemGetInfo")
        return int(free)

    def allocate(self, count: int) -> int:
        """Zeroed device memory; raises ResourceError."""
        address = int(self._call("cudaMalloc", count))
        self._memory[address] = count
        self.zero(address, count)
        return address

    def zero(self, address: int, count: int) -> None:
        """Zero some bytes, in stream order."""
        self._call("cudaMemsetAsync", address, 0, count, self._stream)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a host array to the device, in stream order.

        When the driver has read it is its own affair, so it gets a copy that is kept until the
        stream has been waited for: the caller may change its array at once.
        """
        source = np.array(array, order="C")
        self._in_flight.append(source)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            "cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, self._stream
        )

    def copy(self, target: int, source: int, count: int) -> None:
        """Copy on the device, in stream order."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, count, kind, self._stream)

    def zero_strided(self, address: int, pitch: int, width: int, count: int) -> None:
        """Zero `count` pieces of `width` bytes, `pitch` bytes apart, in stream order."""
        self._call("cudaMemset2DAsync", address, pitch, 0, width, count, self._stream)

    def copy_strided(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, count: int
    ) -> None:
        """Copy such pieces on the device, in stream order."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        pieces = target, target_pitch, source, source_pitch, width, count
        self._call("cudaMemcpy2DAsync", *pieces, kind, self._stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous host array from the device; returns when it is there."""
        assert array.flags.c_contiguous
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self._stream)
        self._in_flight.clear()

    def release(self, addresses: Iterable[int], graphs: Iterable[Any]) -> None:
        """Wait, then free some memory and graphs; what `close` has freed already is left alone."""
        held = [address for address in addresses if address in self._memory]
        if not held:
            return
        self.synchronize()
        for graph in graphs:
            self._graphs.remove(graph)
            self._call("cudaGraphExecDestroy", graph)
        for address in held:
            del self._memory[address]
            self._call("cudaFree", address)

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what `work` puts on the stream as a graph; it is not run yet."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:  # the stream must not stay in capture mode; keep the first error
            error, graph = self._cuda.cudaStreamEndCapture(self._stream)
            if error == self._cuda.cudaError_t.cudaSuccess:
                self._cuda.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any) -> None:
        """Run a captured graph, in stream order."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def close(self) -> None:
        """Wait, then free graphs, memory and the stream: all of it, whatever fails on the way."""
        if self._closed:
            return
        self._closed = True
        releases = [
            ("cudaStreamSynchronize", self._stream),
            *(("cudaGraphExecDestroy", graph) for graph in self._graphs),
            *(("cudaFree", address) for address in self._memory),
            ("cudaStreamDestroy", self._stream),
        ]
        self._graphs, self._memory = [], {}
        failures = []
        for name, handle in releases:
            try:
                self._call(name, handle)
            except (EnvironmentProblem, ResourceError) as error:
                failures.append(error)
        self._in_flight.clear()
        if failures:
            raise failures[0]

    def _call(self, name: str, *args: Any) -> Any:
        error, *values = getattr(self._cuda, name)(*args)
        codes = self._cuda.cudaError_t
        if error == codes.cudaErrorMemoryAllocation:
            wanted = f" for {args[0] / 1e6:.1f} MB more" if name == "cudaMalloc" else ""
            raise ResourceError(
                f"the GPU has no memory{wanted} ({name}). Use fewer rows or a smaller --max-seq, "
                "or close other programs."
            )
        if error != codes.cudaSuccess:
            raise EnvironmentProblem(f"CUDA {name}: {error.name}. Check driver and GPU (doctor).")
        return values[0] if len(values) == 1 else tuple(values)


def _bindings() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        (wanted,) = (name for name in of_extra("gpu") if name.startswith("cuda-python"))
        raise EnvironmentProblem(
            f'cuda-python is not installed: pip install "{wanted}".'
        ) from error
    return runtime

"""A GPU on the host: a recording device, and a TensorRT whose engines run on ONNX Runtime.

The backend under test does everything it would do on a GPU: allocate, bind addresses, enqueue,
capture, launch, copy. Memory here is host memory behind made-up addresses; every access is checked,
so that a wrong size, a freed buffer, or a cache that is not aliased is an error.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from engines.lowering import lower
from runtime.errors import ResourceError

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass
class FakeDevice:
    """`runtime.cuda.CudaDevice` with its memory on the host."""

    memory_bytes: int = 1 << 32
    sm: str = "8.9"
    stream: int = 7
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    blocks: dict[int, np.ndarray] = field(default_factory=dict)
    recording: list[Callable[[], None]] | None = None
    pending: int = 0  # enqueued since the last synchronisation
    closed: bool = False
    next_address: int = 1 << 20

    def capability(self) -> str:
        return self.sm

    @property
    def allocated(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def free_bytes(self) -> int:
        return self.memory_bytes - self.allocated

    def allocate(self, count: int) -> int:
        assert count > 0 and not self.closed and self.recording is None
        if count > self.free_bytes():
            raise ResourceError("the fake GPU is full")
        address = self.next_address
        self.next_address += -(-count // 512) * 512 + 512  # a gap, so that overruns are caught
        self.blocks[address] = np.zeros(count, np.uint8)
        self.calls.append(("allocate", address, count))
        return address

    def view(self, address: int, count: int) -> np.ndarray:
        """Bytes behind an address, which may lie inside a block."""
        assert not self.closed, "memory used after close"
        for start, block in self.blocks.items():
            if start <= address and address + count <= start + len(block):
                return block[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address} are in no buffer")

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous and self.recording is None
        self.calls.append(("upload", address, array.nbytes))
        self.view(address, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous and self.recording is None
        self.calls.append(("download", address, array.nbytes))
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)
        self.pending = 0

    def synchronize(self) -> None:
        assert self.recording is None, "a stream may not be waited for while it captures"
        self.calls.append(("synchronize",))
        self.pending = 0

    def release(self, addresses: Iterable[int], graphs: Iterable[object]) -> None:
        held = [address for address in addresses if address in self.blocks]
        if held:
            self.synchronize()
        for address in held:
            del self.blocks[address]
        self.calls.append(("release", len(held)))

    def capture(self, work: Callable[[], None]) -> list[Callable[[], None]]:
        assert self.pending == 0, "capture begins on an idle stream"
        self.recording = []
        work()
        graph, self.recording = self.recording, None
        self.calls.append(("capture", len(graph)))
        return graph

    def launch(self, graph: list[Callable[[], None]]) -> None:
        self.calls.append(("launch", len(graph)))
        for run in graph:
            run()
        self.pending += 1

    def close(self) -> None:
        assert self.pending == 0, "closed while work was running"
        self.calls.append(("close",))
        self.blocks.clear()
        self.closed = True


class FakeTensorRT:
    """The part of the TensorRT module that the backend uses. Plans name a lowered ONNX file."""

    __version__ = "1.7.1.116"

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            self.level = level

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.contexts: list[FakeContext] = []

    def Runtime(self, logger: object) -> "FakeTensorRT":
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> "FakeEngine":
        return FakeEngine(self, json.loads(plan))


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, plan: dict[str, Any]) -> None:
        self.trt, self.profiles = trt, plan["profiles"]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(plan["graph"], options)

    def create_execution_context(self) -> "FakeContext":
        context = FakeContext(self)
        self.trt.contexts.append(context)
        return context


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.device = engine, engine.trt.device
        self.inputs = {i.name: i for i in engine.session.get_inputs()}
        self.outputs = {o.name: o for o in engine.session.get_outputs()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: dict[str, Any] = {}
        self.runs = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == self.device.stream
        self.profile = self.engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.profile[name]
        self.shapes[name] = shape
        return all(a <= s <= b for a, s, b in zip(smallest, shape, largest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.inputs or name in self.outputs

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """TensorRT infers it; here the graph is run on zeros of the shapes that are set."""
        feed = {n: np.ones(self.shapes[n], DTYPES[i.type]) for n, i in self.inputs.items()}
        return self.engine.session.run([name], feed)[0].shape

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.device.stream
        assert set(self.addresses) == set(self.inputs) | set(self.outputs), "a tensor is unbound"
        for name in self.inputs:
            if name.startswith("past_") and name != "past_lengths":
                present = name.replace("past_", "present_")
                assert self.addresses[name] == self.addresses[present], f"{name} is not in place"
        run = self._run_with(dict(self.shapes), dict(self.addresses))
        if self.device.recording is not None:
            assert self.runs > 0, "TensorRT wants one plain run before a capture"
            self.device.recording.append(run)
            return True
        run()
        self.device.pending += 1
        return True

    def _run_with(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]
    ) -> Callable[[], None]:
        """What a captured graph keeps: shapes and addresses of now, contents of later."""

        def run() -> None:
            feed = {}
            for name, port in self.inputs.items():
                dtype = np.dtype(DTYPES[port.type])
                count = int(np.prod(shapes[name])) * dtype.itemsize
                data = self.device.view(addresses[name], count).tobytes()
                feed[name] = np.frombuffer(data, dtype).reshape(shapes[name])
            for name, array in zip(self.outputs, self.engine.session.run(None, feed), strict=True):
                raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
                self.device.view(addresses[name], len(raw))[:] = raw
            self.runs += 1

        return run


def fake_plan(graph: Path, profiles: list[dict[str, Any]], capacity: int, folder: Path) -> bytes:
    """Lower a graph as the builder does, and put it beside its weights' data."""
    model = lower(onnx.load(graph, load_external_data=False), capacity)
    path = folder / graph.name
    path.write_bytes(model.SerializeToString())
    data = graph.with_name(graph.name + ".data")
    if data.is_file() and not (folder / data.name).exists():
        (folder / data.name).hardlink_to(data)
    return json.dumps({"graph": str(path), "profiles": profiles}).encode()

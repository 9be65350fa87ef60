"""A stand-in for the TensorRT module whose engines run on ONNX Runtime, behind a fake CUDA.

A plan names a lowered ONNX file. The backend under test does all that it would do on a GPU: it
allocates, binds addresses, enqueues, captures, launches and copies; what TensorRT asks of it there
is checked here. `test_fakes.py` holds every name against the real module.
"""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tensorrt_rtx as real
from mimo_edge.engines.lowering import lower
from mimo_edge.runtime.bundle.data_files import data_file
from mimo_edge.runtime.bundle.manifest import PIECES

from tests.engines.fake_cuda import FakeCuda

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
SCRATCH_BYTES = 4096
Strategy = real.DynamicShapesKernelSpecializationStrategy


class FakeTensorRT:
    """The module, as far as the backend uses it."""

    __name__ = "tensorrt_rtx"
    __version__ = "1.7.1.116"
    ExecutionContextAllocationStrategy = real.ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = Strategy
    EngineValidity = real.EngineValidity
    TensorIOMode = real.TensorIOMode
    DataType = real.DataType
    BuilderFlag = real.BuilderFlag

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            self.level = level

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.contexts: weakref.WeakSet[FakeContext] = weakref.WeakSet()
        self.engines: weakref.WeakSet[FakeEngine] = weakref.WeakSet()
        self.validity = real.EngineValidity.VALID

    def Runtime(self, logger: "FakeTensorRT.Logger") -> "FakeRuntime":
        return FakeRuntime(self, logger)

    def alive(self) -> int:
        """Contexts and engines that somebody still holds."""
        if self.contexts or self.engines:
            gc.collect()
        return len(self.contexts) + len(self.engines)


class FakeClassicTensorRT(FakeTensorRT):
    """Classic TensorRT: no kernels that are compiled late, and no question about capturing."""

    __name__ = "tensorrt"
    __version__ = "11.4.1.1"
    DynamicShapesKernelSpecializationStrategy = None  # type: ignore[assignment]

    def Runtime(self, logger: FakeTensorRT.Logger) -> Any:
        runtime = FakeRuntime(self, logger)
        return SimpleNamespace(deserialize_cuda_engine=runtime.deserialize_cuda_engine)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, logger: object) -> None:
        self.trt = trt

    def get_engine_validity(self, plan: Any) -> tuple[Any, list[str]]:
        assert json.loads(bytes(plan))
        return self.trt.validity, ["UNSUPPORTED_CC"]

    def deserialize_cuda_engine(self, plan: Any) -> "FakeEngine | None":
        raw = json.loads(bytes(plan))
        return None if raw.get("broken") else FakeEngine(self.trt, raw)


class FakeRuntimeConfig:
    """Only the attributes that the real one has."""

    __slots__ = ("allocation", "dynamic_shapes_kernel_specialization_strategy")

    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = Strategy.LAZY  # TensorRT's default
        self.allocation = real.ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, plan: dict[str, Any]) -> None:
        self.trt, self.profiles, self.plan = trt, plan["profiles"], plan
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(plan["graph"], options)
        nodes = onnx.load(plan["graph"], load_external_data=False).graph.node
        self.updated = {node.input[0] for node in nodes if node.op_type == "TensorScatter"}
        self.ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.device_memory_size_v2 = SCRATCH_BYTES
        self.inferred: dict[Any, dict[str, tuple[int, ...]]] = {}  # shapes in -> shapes out
        trt.engines.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return self.ports[index].name

    def get_tensor_mode(self, name: str) -> Any:
        inputs = {port.name for port in self.session.get_inputs()}
        return real.TensorIOMode.INPUT if name in inputs else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kind = next(port.type for port in self.ports if port.name == name)
        if name == self.plan.get("wrong_port"):
            return real.DataType.HALF
        return {"tensor(float)": real.DataType.FLOAT, "tensor(int64)": real.DataType.INT64}[kind]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, how: Any = None) -> "FakeContext":
        config = how
        if not isinstance(how, FakeRuntimeConfig):
            config = FakeRuntimeConfig()
            config.set_execution_context_allocation_strategy(how)
        context = FakeContext(self, config)
        if isinstance(self.trt, FakeClassicTensorRT):
            context.is_stream_capturable = None  # type: ignore[assignment]
        self.trt.contexts.add(context)
        return context


class FakeContext:
    def __init__(self, engine: FakeEngine, config: FakeRuntimeConfig) -> None:
        self.engine, self.cuda, self.config = engine, engine.trt.cuda, config
        self.inputs = {i.name: i for i in engine.session.get_inputs()}
        self.outputs = {o.name: o for o in engine.session.get_outputs()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: dict[str, Any] = {}
        self.scratch = 0
        self.runs = 0
        self.captured = False

    def set_device_memory(self, memory: int, size: int) -> None:
        user = real.ExecutionContextAllocationStrategy.USER_MANAGED
        assert self.config.allocation == user
        assert size >= self.engine.device_memory_size_v2 and memory % 256 == 0
        self.cuda.view(memory, size)
        self.scratch = memory

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.cuda.streams
        if index >= len(self.engine.profiles):
            return False
        self.profile = self.engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.captured, "a graph has the old shape in it"
        smallest, _, largest = self.profile[name]
        self.shapes[name] = shape
        return all(a <= s <= b for a, s, b in zip(smallest, shape, largest, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self.captured, "a graph has the old address in it"
        assert memory % 256 == 0, f"{name} is not aligned"
        self.addresses[name] = memory
        return name in self.inputs or name in self.outputs

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """TensorRT infers it; here the graph is run on ones of the shapes that are set, once."""
        known, key = self.engine.inferred, tuple(sorted(self.shapes.items()))
        if key not in known:
            feed = {n: np.ones(self.shapes[n], DTYPES[i.type]) for n, i in self.inputs.items()}
            made = self.engine.session.run(None, feed)
            known[key] = {n: a.shape for n, a in zip(self.outputs, made, strict=True)}
        return known[key][name]

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self.cuda.streams
        return bool(self.engine.plan["capturable"])

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.cuda.streams and self.scratch, "no memory to work in"
        assert set(self.addresses) == set(self.inputs) | set(self.outputs), "a tensor is unbound"
        for name in self.inputs:
            if name.startswith(("past_keys", "past_values")):
                present = name.replace("past_", "present_")
                if present not in self.outputs:  # of a part of a piece, which reads its shape
                    continue
                same = self.addresses[name] == self.addresses[present]
                # TensorRT updates a cache in place, and may write anything else before it has read
                assert same == (name in self.engine.updated), f"{name} is in place: {same}"
        written = [self.addresses[n] for n in self.outputs if not n.startswith("present_")]
        assert not set(written) & {self.addresses[n] for n in self.inputs}, "only caches alias"
        if self.cuda.recording is not None:
            assert self.runs > 0, "TensorRT wants one plain run before a capture"
            if not isinstance(self.engine.trt, FakeClassicTensorRT):
                strategy = self.config.dynamic_shapes_kernel_specialization_strategy
                assert strategy != Strategy.LAZY, "kernels would change under the graph"
                assert self.engine.plan["capturable"], "it allocates as it runs"
            self.captured = True
        self.cuda.enqueue(self._run_with(dict(self.shapes), dict(self.addresses)))
        return True

    def _run_with(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]
    ) -> Callable[[], None]:
        """What a captured graph keeps: shapes and addresses of now, contents of later. It does not
        keep the context, whose end leaves it with nothing to run."""
        alive = weakref.ref(self)

        def run() -> None:
            context = alive()
            assert context is not None, "a graph runs whose context is gone"
            feed = {}
            for name, port in context.inputs.items():
                dtype = np.dtype(DTYPES[port.type])
                count = int(np.prod(shapes[name])) * dtype.itemsize
                data = context.cuda.view(addresses[name], count).tobytes()
                feed[name] = np.frombuffer(data, dtype).reshape(shapes[name])
            made = context.engine.session.run(None, feed)
            for name, array in zip(context.outputs, made, strict=True):
                raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
                context.cuda.view(addresses[name], len(raw))[:] = raw
            context.cuda.view(context.scratch, SCRATCH_BYTES).fill(0xCD)  # whoever was there before
            context.runs += 1

        return run


def fake_plan(
    graph: Path,
    profiles: list[dict[str, Any]],
    capacity: int,
    folder: Path,
    model: onnx.ModelProto | None = None,
    **extra: Any,
) -> bytes:
    """Lower a graph as the builder does, or another `model` of its weights, and put it beside
    their data."""
    assert graph.stem in PIECES
    model = lower(model or onnx.load(graph, load_external_data=False), capacity)
    path = folder / graph.name
    path.write_bytes(model.SerializeToString())
    data = graph.with_name(data_file(graph.stem))
    if data.is_file() and not (folder / data.name).exists():
        (folder / data.name).hardlink_to(data)
    plan = {"graph": str(path), "profiles": profiles, "capturable": True}
    return json.dumps(plan | extra).encode()

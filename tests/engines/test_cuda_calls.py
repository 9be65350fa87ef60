"""The CUDA calls against NVIDIA's own Python binding, and TensorRT's names against its module.

Both install without a GPU. Nothing is run: every call must fit the real function's signature, with
enums of the real kind.
"""

import inspect
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from cuda.bindings import runtime as real

from runtime.cuda import CudaDevice
from runtime.errors import EnvironmentProblem, ResourceError

RETURNS: dict[str, tuple[Any, ...]] = {
    "cudaStreamCreateWithFlags": (7,),
    "cudaMalloc": (4096,),
    "cudaMemGetInfo": (100, 200),
    "cudaDeviceGetAttribute": (8,),
    "cudaStreamEndCapture": ("graph",),
    "cudaGraphInstantiate": ("executable",),
}


class CheckedRuntime:
    """The real binding's names, constants and signatures, without its effects."""

    def __init__(self, failing: str = "", error: Any = None) -> None:
        self.calls: list[str] = []
        self._failing, self._error = failing, error

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)  # AttributeError if there is no such thing
        if inspect.isclass(found) or isinstance(found, int):
            return found

        def call(*args: Any) -> tuple[Any, ...]:
            bound = inspect.signature(found).bind(*args)
            for parameter in inspect.signature(found).parameters.values():
                if isinstance(parameter.annotation, str) and parameter.annotation.startswith(
                    "'cuda"
                ):
                    kind = getattr(real, parameter.annotation.strip("'"))
                    assert isinstance(bound.arguments[parameter.name], kind), parameter
                elif isinstance(parameter.annotation, str) and hasattr(real, parameter.annotation):
                    kind = getattr(real, parameter.annotation)
                    assert isinstance(bound.arguments[parameter.name], kind), parameter
            self.calls.append(name)
            if name == self._failing:
                return (self._error,)
            return (real.cudaError_t.cudaSuccess, *RETURNS.get(name, ()))

        return call


def device(monkeypatch: pytest.MonkeyPatch, runtime: CheckedRuntime) -> CudaDevice:
    monkeypatch.setattr("cuda.bindings.runtime", runtime)
    return CudaDevice()


def test_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = CheckedRuntime()
    gpu = device(monkeypatch, runtime)
    assert gpu.capability() == "8.8" and gpu.free_bytes() == 100 and gpu.stream == 7
    address, array = gpu.allocate(64), np.zeros(16, np.float32)
    assert gpu.allocated == 64
    gpu.upload(address, array)
    gpu.download(array, address)
    graph = gpu.capture(lambda: gpu.upload(address, array))
    gpu.launch(graph)
    other = gpu.capture(lambda: gpu.upload(address, array))
    runtime.calls.clear()
    gpu.release([address], [other])
    gpu.release([address], [])  # once is enough
    assert runtime.calls == ["cudaStreamSynchronize", "cudaGraphExecDestroy", "cudaFree"]
    assert gpu.allocated == 0
    gpu.allocate(64)
    runtime.calls.clear()
    gpu.close()
    assert gpu.allocated == 0
    assert runtime.calls == [
        "cudaStreamSynchronize",
        "cudaGraphExecDestroy",
        "cudaFree",
        "cudaStreamDestroy",
    ]


def test_a_download_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = CheckedRuntime()
    gpu = device(monkeypatch, runtime)
    runtime.calls.clear()
    gpu.download(np.zeros(4, np.float32), 4096)
    assert runtime.calls == ["cudaMemcpyAsync", "cudaStreamSynchronize"]


def test_a_failing_capture_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = CheckedRuntime()
    gpu = device(monkeypatch, runtime)

    def fail() -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        gpu.capture(fail)
    assert runtime.calls[-1] == "cudaStreamEndCapture"


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = real.cudaError_t
    full = CheckedRuntime("cudaMalloc", codes.cudaErrorMemoryAllocation)
    with pytest.raises(ResourceError, match="no memory"):
        device(monkeypatch, full).allocate(1 << 20)
    lost = CheckedRuntime("cudaSetDevice", codes.cudaErrorNoDevice)
    with pytest.raises(EnvironmentProblem, match="cudaErrorNoDevice"):
        device(monkeypatch, lost)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("Runtime", ("deserialize_cuda_engine",)),
        ("ICudaEngine", ("create_execution_context",)),
        (
            "IExecutionContext",
            (
                "set_optimization_profile_async",
                "set_input_shape",
                "set_tensor_address",
                "get_tensor_shape",
                "execute_async_v3",
            ),
        ),
        ("IBuilderConfig", ("create_timing_cache", "set_timing_cache", "get_timing_cache")),
        ("ITimingCache", ("serialize",)),
    ],
)
def test_tensorrt_has_what_the_backend_calls(kind: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert callable(getattr(getattr(tensorrt_rtx, kind), name))

"""The stand-ins have no name that the real modules lack, so what passes on them can be called."""

import inspect
import re

import pytest
import tensorrt_rtx
from cuda.bindings import runtime
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.bundle.errors import EnvironmentProblem

from tests.engines import fake_tensorrt as fakes
from tests.engines.fake_cuda import FakeCuda

CLASSES = {
    fakes.FakeRuntime: tensorrt_rtx.Runtime,
    fakes.FakeEngine: tensorrt_rtx.ICudaEngine,
    fakes.FakeContext: tensorrt_rtx.IExecutionContext,
    fakes.FakeRuntimeConfig: tensorrt_rtx.IRuntimeConfig,
}
OURS = {"alive", "allocation", "cuda"}  # of the stand-ins alone


@pytest.mark.parametrize("fake", CLASSES, ids=lambda fake: fake.__name__)
def test_tensorrt_has_what_the_fake_has(fake: type) -> None:
    names = {n for n in vars(fake) if not n.startswith("_")} - OURS
    assert names and all(hasattr(CLASSES[fake], name) for name in names), names
    for name in names:
        method, real = getattr(fake, name), getattr(CLASSES[fake], name)
        if inspect.isfunction(method) and "*args" not in (real.__doc__ or ""):
            given = len(inspect.signature(method).parameters)
            signature = re.sub("<[^>]*>", "", real.__doc__)  # defaults
            wanted = signature.split(")")[0].count(":")  # pybind writes "name: type"
            assert given == wanted, f"{name} takes {wanted}, the fake {given}"


def test_the_builder_has_what_is_called() -> None:
    """Of classic TensorRT's timing cache, which no build here uses."""
    config, cache = tensorrt_rtx.IBuilderConfig, tensorrt_rtx.ITimingCache
    for name in ("create_timing_cache", "set_timing_cache", "get_timing_cache"):
        assert callable(getattr(config, name))
    assert callable(cache.serialize)


def test_module_has_what_the_fake_has() -> None:
    names = {n for n in vars(fakes.FakeTensorRT) if not n.startswith("_")} - OURS
    assert all(hasattr(tensorrt_rtx, name) for name in names)
    # with these types the backend hands over plans and settings
    assert "Buffer" in tensorrt_rtx.Runtime.deserialize_cuda_engine.__doc__
    assert "Buffer" in tensorrt_rtx.Runtime.get_engine_validity.__doc__
    contexts = tensorrt_rtx.ICudaEngine.create_execution_context.__doc__
    assert "ExecutionContextAllocationStrategy" in contexts and "IRuntimeConfig" in contexts


def test_cuda_has_what_the_fake_has() -> None:
    functions = [n for n in vars(FakeCuda) if n.startswith("cuda")]
    assert functions and all(hasattr(runtime, name) for name in functions)
    assert int(runtime.cudaStream_t(5)) == 5, "TensorRT is given the stream as a number"


def test_the_real_module_without_a_gpu() -> None:
    """The real calls, as far as they go here: a sentence and exit code 3, not a crash."""
    count = runtime.cudaGetDeviceCount()
    if count[0] == runtime.cudaError_t.cudaSuccess and count[1] > 0:
        CudaDevice().close()
        return
    with pytest.raises(EnvironmentProblem, match="cudaSetDevice") as error:
        CudaDevice()
    assert error.value.exit_code == 3


def test_the_fake_sees_mistakes() -> None:
    """The checks that the backend's tests rely on do bite."""
    cuda = FakeCuda()
    device = CudaDevice(bindings=cuda)
    with pytest.raises(TypeError):
        cuda.cudaMalloc(1, 2)
    with pytest.raises(AssertionError, match="kind"):
        cuda.cudaMemcpyAsync(1, 1, 1, 1, device.stream)
    with pytest.raises(AssertionError, match="in no buffer"):
        cuda.view(12345, 1)
    address = device.allocate(8)
    with pytest.raises(AssertionError, match="in use"):
        cuda.cudaFree(address)  # its clearing is still on the stream

"""`backends.cuda` itself, on a fake of NVIDIA's bindings: order, copies, lifetime, failures."""

import numpy as np
import pytest
from cuda.bindings import runtime
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, ResourceError

from tests.engines.fake_cuda import FakeCuda

FAILED = runtime.cudaError_t.cudaErrorIllegalAddress


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda(memory_bytes=10_000)


@pytest.fixture
def device(cuda: FakeCuda) -> CudaDevice:
    return CudaDevice(bindings=cuda)


def test_memory_is_zeroed_and_round_trips(cuda: FakeCuda, device: CudaDevice) -> None:
    address = device.allocate(40)
    back = np.ones(10, np.float32)
    device.download(back, address)
    assert (back == 0).all() and device.allocated == 40
    device.upload(address, np.arange(20, dtype=np.float32)[::2])  # not contiguous
    device.download(back, address)
    assert (back == np.arange(0, 20, 2)).all()
    assert device.free_bytes() == 10_000 - 40 and device.capability() == "8.9"


def test_the_source_of_an_upload_may_change_at_once(device: CudaDevice) -> None:
    """The stream comes to it later: the fake fails if what it was given has changed by then."""
    address, source, back = device.allocate(80), np.arange(10), np.zeros(10, np.int64)
    device.upload(address, source)
    source += 100
    del source
    device.download(back, address)
    assert (back == np.arange(10)).all()


def test_a_graph_runs_with_what_is_there_then(cuda: FakeCuda, device: CudaDevice) -> None:
    address, back = device.allocate(8), np.zeros(1)
    graph_runs: list[int] = []
    device.synchronize()
    graph = device.capture(lambda: cuda.enqueue(lambda: graph_runs.append(1)))
    assert not graph_runs and not cuda.graphs, "a capture runs nothing, and the graph is destroyed"
    device.launch(graph)
    device.download(back, address)
    assert graph_runs == [1]
    device.release([address], [graph])
    assert not cuda.executables


def test_a_failed_capture_leaves_the_stream_usable(cuda: FakeCuda, device: CudaDevice) -> None:
    def work() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        device.capture(work)
    assert cuda.recording is None and not cuda.graphs
    device.synchronize()

    cuda.failing["cudaGraphInstantiate"] = runtime.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(ResourceError, match="no memory"):
        device.capture(lambda: None)
    assert not cuda.graphs, "the graph is destroyed even so"


def test_out_of_memory_says_how_much(device: CudaDevice) -> None:
    with pytest.raises(ResourceError, match=r"20\.0 MB more") as error:
        device.allocate(20_000_000)
    assert error.value.exit_code == 4


def test_close_frees_everything_once(cuda: FakeCuda, device: CudaDevice) -> None:
    device.allocate(10)
    freed = device.allocate(10)
    device.release([freed], [])
    device.release([freed], [])
    device.capture(lambda: None)
    device.close()
    assert not cuda.leaks()
    device.close()


def test_close_frees_everything_after_a_failure(cuda: FakeCuda, device: CudaDevice) -> None:
    """A GPU in error says so at every call; the rest must be tried all the same."""
    device.allocate(10)
    device.synchronize()
    device.capture(lambda: None)
    cuda.failing["cudaStreamSynchronize"] = FAILED
    with pytest.raises(EnvironmentProblem, match="cudaErrorIllegalAddress"):
        device.close()
    assert not cuda.leaks()

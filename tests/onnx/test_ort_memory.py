"""Rows moved and zeroed on a GPU: the copies of `backends.cuda`, against what numpy does."""

import ctypes
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.ort_memory import Buffer, Memory

from tests.engines.fake_cuda import FakeCuda


class HostCuda(FakeCuda):
    """A GPU whose memory is the host's: ONNX Runtime's tensors are in reach of its copies."""

    def view(self, address: int, count: int) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint8 * count).from_address(address), np.uint8)


@pytest.fixture
def cuda() -> HostCuda:
    return HostCuda()


@pytest.fixture
def memory(cuda: HostCuda) -> Memory:
    memory = Memory("cpu")
    memory.__dict__["cuda"] = CudaDevice(bindings=cuda)
    return memory


def both(memory: Memory, shape: tuple[int, ...], dtype: Any) -> tuple[Buffer, Buffer]:
    """Two buffers with the same content, of which the second is as if on the GPU."""
    buffers = memory.allocate(shape, dtype), memory.allocate(shape, dtype)
    content = np.random.default_rng(len(shape) + shape[2]).random(shape).astype(dtype)
    for buffer in buffers:
        buffer.write(content)
    buffers[1]._on_host = False
    return buffers


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_are_moved_where_they_lie(memory: Memory, cuda: HostCuda, dtype: Any) -> None:
    caches, grown = both(memory, (3, 2, 8, 4), dtype), both(memory, (4, 2, 16, 4), dtype)
    for cache, larger in zip(caches, grown, strict=True):
        cache.zero(1, 3, 7)
        cache.copy_row(0, 2, 5, cache)
        larger.copy_row(2, 3, 8, cache)
        larger.copy_row(1, 0, 0, cache)  # nothing
    for here, there in (caches, grown):
        assert (here.read() == there.read()).all()
    assert (caches[0].read()[1, :, 3:7] == 0).all() and (grown[0].read()[3, 0, 7] != 0).all()
    crossed = {call[0] for call in cuda.calls} & {"upload", "download", "malloc"}
    assert not crossed, "no content crosses over to the host"
    caches[1].clear()
    assert (caches[1].read() == 0).all()

"""What the TensorRT backend takes of the GPU: buffers that answers share, and refusals in time."""

import gc

import numpy as np
import pytest
from mimo_edge.runtime.bundle.engine import PREFILL_LENGTHS
from mimo_edge.runtime.bundle.errors import (
    ContextError,
    EngineError,
    InputError,
    ResourceError,
)
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request

from tests import check
from tests.engines.conftest import Open
from tests.golden import Golden
from tests.grids import forward_of, grid_of

HOT = Sampling(0.9, top_k=20, top_p=0.95)


def test_answers_share_their_buffers(golden: Golden, open_fake: Open) -> None:
    """Answer after answer takes no more memory, and what an old one left behind changes nothing."""
    lm = golden.lm_names[0]
    arrays = golden.npz(f"{lm}.generate.npz")
    cases = golden.generate_cases(lm)[:2]
    requests = [Request(arrays[f"{c}.ids"], HOT, HOT, max_new=5, seed=7) for c in cases]
    backend, cuda = open_fake(lm)
    with backend:
        first = grid_of(backend, list(generate(backend, requests[0], golden.empty_id)))
        list(generate(backend, requests[1], golden.empty_id))
        gc.collect()
        for memory in backend._idle:
            for name, address in memory._address.items():
                if name.startswith("cache_"):
                    left = cuda.view(address, memory._row_bytes[name])
                    left.view(np.float32)[:] = np.nan
        held, graphs = backend.device.allocated, len(cuda.executables)
        cuda.calls.clear()
        list(generate(backend, requests[1], golden.empty_id))
        again = grid_of(backend, list(generate(backend, requests[0], golden.empty_id)))
        check.equal(again, first, "the same request, in used buffers")
        assert "malloc" not in cuda.names() and "instantiate" not in cuda.names()
        assert backend.device.allocated == held and len(cuda.executables) == graphs
        # rows that are in use are nobody else's
        one, two = backend.new_rows(1), backend.new_rows(1)
        assert one._memory is not two._memory
        # another number of rows: idle buffers make room, used ones stay
        del two
        backend.new_rows(2)
        assert one._memory in backend._rows and "free" in cuda.names()
    assert not cuda.leaks()


def test_rows_outlive_the_backend_harmlessly(golden: Golden, open_fake: Open) -> None:
    backend, cuda = open_fake(golden.lm_names[0])
    with backend:
        states = backend.new_rows(1)
    assert not cuda.leaks() and backend._trt.alive() == 0
    del states
    gc.collect()


def test_limits(golden: Golden, open_fake: Open) -> None:
    lm = golden.lm_names[0]
    backend, _ = open_fake(lm)
    with backend:
        with pytest.raises(InputError, match="--max-batch 3"):
            backend.new_rows(3)
        states = backend.new_rows(1)
        assert states.capacity < PREFILL_LENGTHS[-1], "a full prompt is one chunk"
        text, codes = forward_of(golden, lm, backend)
        many = np.resize(np.arange(len(text)), states.capacity + 1)
        with pytest.raises(ContextError, match="--max-seq"):
            states.extend(0, text[many], codes[many])
        states.extend(0, text[many[:-1]], codes[many[:-1]])
        with pytest.raises(ContextError, match="positions"):
            states.step(0, text[:1], codes[:1], np.array([True]))


def test_out_of_memory_before_work_starts(golden: Golden, open_fake: Open) -> None:
    """Weights, then scratch, then rows: each is refused as a whole, and what was taken goes."""
    lm = golden.lm_names[0]
    with pytest.raises(ResourceError, match="engines need"):
        open_fake(lm, memory_bytes=10)
    backend, cuda = open_fake(lm)
    with backend:
        needed = backend.device.allocated
        backend.new_rows(2)
        rows = backend.device.allocated - needed
    backend, cuda = open_fake(lm, memory_bytes=needed + rows - 1)
    with backend:
        with pytest.raises(ResourceError, match=r"2 rows of 320 patches need .* MB free"):
            backend.new_rows(2)
        assert backend.device.allocated == needed, "nothing was taken before the refusal"
        backend.new_rows(1)
    assert not cuda.leaks()
    backend, cuda = open_fake(lm, memory_bytes=needed + rows)  # the account is exact
    with backend:
        backend.new_rows(2)


def test_a_row_that_would_not_be_aligned(
    golden: Golden, open_fake: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second row of a cache begins where the first ends; kernels may want that aligned."""
    backend, cuda = open_fake(golden.lm_names[0])
    with backend:
        model = backend.bundle.model
        row = model.kv_heads * backend.identity.max_seq * model.head_dim * 4
        monkeypatch.setattr("mimo_edge.runtime.backends.trt_rows.ALIGNMENT", 2 * row)
        backend.new_rows(1)
        with pytest.raises(EngineError, match=f"cache_keys_0 has {row} bytes.*--max-seq"):
            backend.new_rows(2)
    assert not cuda.leaks()

"""Steps recorded as CUDA graphs, on a stand-in for what ONNX Runtime does with them: what is
recorded runs more than once at first, and later with whatever is in its buffers."""

from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_graphs import GRAPH_PIECES, NOT_RECORDED, NUMBER, CudaGraphs
from mimo_edge.runtime.backends.ort_rows import KEPT, OrtRowStates
from mimo_edge.runtime.bundle.errors import InputError

from tests import check
from tests.golden import Golden
from tests.onnx.test_ort_backend import prompt_of


class Recording:
    """A session that records runs by number as CUDA's provider does."""

    def __init__(self, session: Any) -> None:
        self.session, self.recorded, self.released = session, {}, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, outputs: None, feed: Any, options: Any) -> Any:
        assert options.get_run_config_entry(NUMBER) == NOT_RECORDED, "its shapes are not fixed"
        return self.session.run(outputs, feed, options)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        number = options.get_run_config_entry(NUMBER)
        if number != NOT_RECORDED and number not in self.recorded:
            self.recorded[number] = binding
            for _ in range(2):  # until memory is settled, and while it records
                self.session.run_with_iobinding(binding)
        if number != NOT_RECORDED:
            assert self.recorded[number] is binding, "it would replay the other binding's addresses"
            assert number not in self.released
        self.session.run_with_iobinding(binding)

    def release_captured_graph(self, number: int) -> None:
        assert str(number) in self.recorded and str(number) not in self.released
        self.released.append(str(number))


@pytest.fixture
def recording(backend: OrtBackend) -> tuple[OrtBackend, dict[str, Recording]]:
    fresh = OrtBackend(backend.bundle, cuda_graphs=GRAPH_PIECES)
    sessions = {name: Recording(fresh.session(name)) for name in GRAPH_PIECES}
    fresh._sessions.update(sessions)
    return fresh, sessions


def answers(backend: OrtBackend, golden: Golden) -> tuple[OrtRowStates, list[np.ndarray]]:
    """Two rows of their own length, three patches each, and a step of the second alone."""
    model, rng = backend.bundle.model, np.random.default_rng(3)
    states, found = OrtRowStates(backend, 2, capacity=8), []
    for row, patches in enumerate((5, 7)):
        states.extend(row, *prompt_of(golden, backend, patches))
    codes = np.zeros((2, model.group_size, model.n_q), np.int64)
    ids = np.full(2, golden.empty_id)
    for first in (0, 0, 0, 1):  # the second is one too many for a capacity of 8
        n = 2 - first
        uniforms = rng.random((n, model.group_size, model.n_q), np.float32)
        ones = np.ones(n, np.float32), np.zeros(n, np.int64), np.ones(n, np.float32)
        codes[first:] = states.draw_codes(first, uniforms, *ones)
        grid = np.ascontiguousarray(codes[first:].swapaxes(1, 2))
        found += [
            codes[first:].copy(),
            states.step(first, ids[first:], grid, np.ones(n, bool)).copy(),
        ]
    return states, found


def test_what_is_recorded_may_run_more_than_once(
    golden: Golden, backend: OrtBackend, recording: tuple[OrtBackend, dict[str, Recording]]
) -> None:
    graphs, sessions = recording
    _, plain = answers(backend, golden)
    states, recorded = answers(graphs, golden)
    for number, (one, other) in enumerate(zip(recorded, plain, strict=True)):
        check.equal(one, other, f"result {number}")
    # before and after the caches grew, and of the second row alone
    assert len(sessions["backbone"].recorded) == len(sessions["patch_encoder"].recorded) == 3
    assert len(sessions["backbone"].released) == 1, "the one that was bound to the old caches"
    assert len(sessions["patch_decoder"].recorded) == 2 * backend.bundle.model.sub_steps
    states.close()
    for session in sessions.values():
        assert sorted(session.released) == sorted(session.recorded)


def test_bindings_that_are_dropped_are_released(
    golden: Golden, recording: tuple[OrtBackend, dict[str, Recording]]
) -> None:
    backend, sessions = recording
    states, model = backend.new_rows(KEPT + 1), backend.bundle.model
    for row in range(KEPT + 1):
        states.extend(row, *prompt_of(golden, backend, 1))
    codes = np.zeros((1, model.n_q, model.group_size), np.int64)
    for row in range(KEPT + 1):
        states.step(row, np.zeros(1, np.int64), codes, np.ones(1, bool))
    assert sessions["backbone"].released == [min(sessions["backbone"].recorded, key=int)]


def test_what_has_no_fixed_shapes_is_refused() -> None:
    with pytest.raises(InputError, match="'mel_stream' cannot be recorded"):
        CudaGraphs(["mel_stream"])

"""ONNX Runtime's failures as ours, and rows that are used again."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_rows import FIRST_CAPACITY, OrtRowStates
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, ResourceError

from tests import check
from tests.golden import Golden


def prompt_of(golden: Golden, backend: OrtBackend, patches: int) -> tuple[np.ndarray, np.ndarray]:
    model, rng = backend.bundle.model, np.random.default_rng(patches)
    codes = rng.integers(0, np.array(model.code_vocab) - 1, (patches, model.group_size, model.n_q))
    return np.full(patches, golden.empty_id), np.ascontiguousarray(codes.swapaxes(1, 2))


def poison(states: OrtRowStates, row: int) -> None:
    """As an answer leaves the cache in which a component overflowed."""
    for cache in states._caches:
        content = cache.numpy()
        content[row] = np.nan
        cache.update_inplace(content)


@pytest.mark.parametrize("rows", [1, 2])
def test_what_overflowed_stays_in_its_answer(
    golden: Golden, backend: OrtBackend, rows: int
) -> None:
    short, longer = (prompt_of(golden, backend, patches) for patches in (5, 9))
    expected = backend.new_rows(1).prefill(0, *short)
    states = backend.new_rows(rows)
    states.prefill(rows - 1, *longer)
    poison(states, rows - 1)
    states.clear(rows - 1)
    check.equal(states.prefill(rows - 1, *short), expected, "scores")
    active = np.arange(rows) == rows - 1
    empty = np.zeros((rows, *short[1].shape[1:]), np.int64)
    assert np.isfinite(states.step(np.zeros(rows, np.int64), empty, active)[rows - 1]).all()


def test_a_cache_that_cannot_grow_is_as_it_was(
    golden: Golden, backend: OrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, codes = prompt_of(golden, backend, FIRST_CAPACITY)
    states, allocate, left = backend.new_rows(1), backend.value, [1]
    states.prefill(0, ids, codes)

    def until_memory_ends(shape: Any, dtype: Any) -> Any:
        if not left:
            raise ResourceError("cannot allocate")
        left.pop()
        return allocate(shape, dtype)

    one = ids[:1], codes[:1], np.ones(1, bool)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "value", until_memory_ends)
        with pytest.raises(ResourceError):
            states.step(*one)
    assert states.lengths[0] == FIRST_CAPACITY
    other = backend.new_rows(1)
    other.prefill(0, ids, codes)
    check.equal(states.step(*one), other.step(*one), "the step, tried again")


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 99", ResourceError),
        ("std::bad_alloc", ResourceError),
        ("Non-zero status code returned while running Gather", EnvironmentProblem),
    ],
)
def test_errors_of_a_run_are_told(backend: OrtBackend, says: str, kind: type[Exception]) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError(says)

    broken, session = OrtBackend(backend.bundle), SimpleNamespace(run=fail)
    broken._sessions["mel"] = session  # type: ignore[assignment]
    with pytest.raises(kind, match=f"run mel.*{says[:20]}"):
        broken.mel(np.zeros(960, np.float32))


def test_a_gpu_that_is_not_there_is_no_cpu(
    backend: OrtBackend, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wheel that could, on a machine that cannot."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(EnvironmentProblem, match=r"CUDAExecutionProvider|ort-cpu"):
        OrtBackend(backend.bundle, "cuda").session("mel")
    assert capfd.readouterr().out == ""


def test_bf16_is_refused() -> None:
    bundle: Any = SimpleNamespace(piece=lambda name: SimpleNamespace(compute="bf16"))
    with pytest.raises(EnvironmentProblem, match="--dtype fp32 or fp16, or build engines"):
        OrtBackend(bundle)

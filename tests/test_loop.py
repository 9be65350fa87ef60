"""The loop on rows that only count: when a patch comes, what a failure leaves, what NaN does."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.bundle.errors import BundleError, ResourceError
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import Loop, Request

SPEECH, GROUP, CODEBOOKS, VOCABULARY = 9, 2, 3, 10
GREEDY = Sampling(0.0)
MODEL = SimpleNamespace(
    group_size=GROUP, n_q=CODEBOOKS, empty_codes=(7, 7, 7), context=50, vocab_size=VOCABULARY
)


class CountingRows:
    """The next text id of a row is its length modulo the vocabulary."""

    capacity = 40

    def __init__(self, rows: int) -> None:
        self.rows, self.lengths = rows, np.zeros(rows, np.int64)
        self.calls: list[str] = []
        self.fails = False
        self.codes = 5

    def prefill(self, row: int, text_ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
        self.calls.append("prefill")
        self.lengths[row] = len(text_ids)
        return self._scores()[row]

    def step(self, text_ids: np.ndarray, codes: np.ndarray, active: np.ndarray) -> np.ndarray:
        if self.fails:
            raise ResourceError("no memory for more")
        self.calls.append("step")
        self.lengths += active
        return self._scores()

    def draw_codes(self, uniforms: np.ndarray, *settings: np.ndarray) -> np.ndarray:
        self.calls.append("draw")
        return np.full((self.rows, GROUP, CODEBOOKS), self.codes, np.int64)

    def clear(self, row: int) -> None:
        self.lengths[row] = 0

    def _scores(self) -> np.ndarray:
        scores = np.zeros((self.rows, VOCABULARY), np.float32)
        scores[np.arange(self.rows), self.lengths % VOCABULARY] = 1
        return scores


def loop_of(rows: int) -> tuple[Loop, CountingRows]:
    states = CountingRows(rows)
    backend: Any = SimpleNamespace(
        bundle=SimpleNamespace(model=MODEL, speaks=True), new_rows=lambda count: states
    )
    return Loop(backend, SPEECH, rows), states


def request(patches: int, **limits: int) -> Request:
    prompt = np.zeros((1 + CODEBOOKS, patches * GROUP), np.int64)
    return Request(prompt, GREEDY, GREEDY, **limits)


def ids(loop: Loop) -> list[int]:
    return [step.text_id for step in loop.step()]


def test_a_patch_comes_before_the_backbone_reads_it() -> None:
    loop, states = loop_of(1)
    loop.add(request(9, max_new=2))
    assert ids(loop) == [9]
    assert states.calls == ["prefill", "draw"], "no step that nobody has asked for"
    assert ids(loop) == [0] and states.calls[-1] == "step"
    assert loop.step() == [] and states.calls.count("step") == 1, "the last patch is not read"


def test_times_are_the_loops_own() -> None:
    loop, _ = loop_of(1)
    loop.add(request(3, max_new=3))
    for step in (*loop.step(), *loop.step()):
        assert 0 < step.backend_seconds <= step.seconds < 1


def test_a_row_that_joins_keeps_its_state() -> None:
    """The patches that the other rows have drawn are read before its prompt, not after."""
    loop, states = loop_of(2)
    loop.add(request(3))
    assert ids(loop) == [3]
    loop.add(request(6))
    assert states.calls == ["prefill", "step", "prefill"]
    assert ids(loop) == [4, 6] and ids(loop) == [5, 7]


def test_a_step_that_fails_loses_nothing() -> None:
    loop, states = loop_of(2)
    first = loop.add(request(3))
    loop.add(request(6))
    assert ids(loop) == [3, 6]
    states.fails = True
    for _ in range(2):
        with pytest.raises(ResourceError):
            loop.step()
    states.fails = False
    loop.remove(first)
    assert ids(loop) == [7], "neither skipped nor repeated"


def test_a_row_in_the_place_of_another_is_not_read_for_it() -> None:
    loop, _ = loop_of(1)
    request_id = loop.add(request(4))
    assert ids(loop) == [4]
    loop.remove(request_id)
    loop.add(request(7))
    assert ids(loop) == [7]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, states = loop_of(1)
    loop.add(request(3))
    loop.step()
    scores = np.full((1, VOCABULARY), 0.5, np.float32)
    scores[0, 4] = bad
    monkeypatch.setattr(states, "_scores", lambda: scores)
    with pytest.raises(BundleError, match=r"scores of the text are NaN or infinite.*--dtype"):
        loop.step()


def test_codes_that_come_of_no_numbers() -> None:
    loop, states = loop_of(1)
    loop.add(request(9))
    states.codes = -1  # what the graph's sampler makes of NaN
    with pytest.raises(BundleError, match=r"audio codes are NaN or infinite.*--dtype"):
        loop.step()

"""A backend that only counts: the next text id of a row is its length modulo the vocabulary.

What a row holds is kept, so that a test can see what it was given.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.request import Request

SPEECH, GROUP, CODEBOOKS, VOCABULARY = 9, 2, 3, 10
GREEDY = Sampling(0.0)
MODEL = SimpleNamespace(
    group_size=GROUP,
    n_q=CODEBOOKS,
    empty_codes=(7, 7, 7),
    context=50,
    vocab_size=VOCABULARY,
    sampling_rate=24000,
)


class CountingRows:
    """Rows whose ids can be read: `ids[row]` are the text ids that it holds."""

    capacity = 40
    remembered, last_shape = 0, ()  # of a codec's rows

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.calls: list[str] = []
        self.fails: Exception | None = None
        self.codes = 5
        self.bad: dict[int, float] = {}  # first text id of a row -> what its scores are
        self.closed = False

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.ids])

    def extend(self, row: int, text_ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
        self.calls.append("extend")
        assert len(text_ids) and len(self.ids[row]) + len(text_ids) <= self.capacity
        self.ids[row] += text_ids.tolist()
        return self._scores()[row]

    def truncate(self, row: int, length: int) -> None:
        del self.ids[row][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        self.calls.append("copy")
        assert source != target and len(self.ids[source]) >= length
        self.ids[target] = self.ids[source][:length]

    def step(
        self, first: int, text_ids: np.ndarray, codes: np.ndarray, active: np.ndarray
    ) -> np.ndarray:
        if self.fails is not None:
            raise self.fails
        self.calls.append("step")
        for row, (text_id, goes) in enumerate(zip(text_ids, active, strict=True), start=first):
            assert len(self.ids[row]) < self.capacity, "no place for what a step writes"
            if goes:
                self.ids[row].append(int(text_id))
        return self._scores()[first : first + len(active)]

    def draw_codes(self, first: int, uniforms: np.ndarray, *settings: np.ndarray) -> np.ndarray:
        self.calls.append("draw")
        return np.full((len(uniforms), GROUP, CODEBOOKS), self.codes, np.int64)

    def close(self) -> None:
        self.closed = True

    def _scores(self) -> np.ndarray:
        scores = np.zeros((self.rows, VOCABULARY), np.float32)
        scores[np.arange(self.rows), self.lengths % VOCABULARY] = 1
        for row, ids in enumerate(self.ids):
            for text_id, value in self.bad.items():
                if ids[:1] == [text_id]:
                    scores[row, 4] = value
        return scores


class CountingBackend:
    """Gives out the same rows again and again, so that a test can look at them."""

    slots = 2

    def __init__(self, rows: int = 2) -> None:
        self.bundle: Any = SimpleNamespace(model=MODEL, speaks=True)
        self.states = CountingRows(rows)

    def new_rows(self, rows: int) -> CountingRows:
        assert rows == self.states.rows
        return self.states

    def load(self, pieces: Sequence[str]) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def request(patches: int, first: int = 0, **limits: int) -> Request:
    """A prompt of text: `first`, and zeros. The ids of its answer count on from its length."""
    prompt = np.zeros((1 + CODEBOOKS, patches * GROUP), np.int64)
    prompt[0, 0] = first
    return Request(prompt, GREEDY, GREEDY, **limits)


def answer(patches: int, count: int) -> list[int]:
    """The text ids that such a prompt is answered with."""
    return [(patches + index) % VOCABULARY for index in range(count)]

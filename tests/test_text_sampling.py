"""Text ids without a sort: the definition, sorted, says the same."""

import numpy as np
import pytest
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation import sampling as drawing
from mimo_edge.runtime.generation.sampling import filter_scores, sample, softmax


def sorted_filter(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """As the reference has it: the smallest set that has the mass, of the top_k best."""
    scaled = scores / np.float32(sampling.temperature)
    ascending = np.sort(scaled)
    kept_from = ascending[-min(sampling.top_k, len(scaled))] if sampling.top_k else ascending[0]
    survivors = ascending[np.searchsorted(ascending, kept_from) :]
    kept = np.cumsum(softmax(survivors), dtype=np.float32) > np.float32(1) - np.float32(
        sampling.top_p
    )
    kept[-1] = True
    return np.where(scaled < survivors[np.argmax(kept)], -np.inf, scaled)


def cases() -> list[tuple[np.ndarray, Sampling]]:
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        size = int(rng.choice([7, 300, 3000]))
        scores = (rng.normal(size=size) * rng.choice([0.1, 1, 10])).astype(np.float32)
        if rng.random() < 0.6:
            scores[rng.integers(size)] += np.float32(rng.choice([3, 8, 20, 300]))
        if rng.random() < 0.3:
            scores = np.round(scores)  # ties
        top_k, top_p = rng.choice([0, 0, 1, 5, size]), rng.choice([0.1, 0.9, 0.95, 0.9999, 1.0])
        temperature = rng.choice([0.3, 0.6, 1.0, 2.0])
        found.append((scores, Sampling(float(temperature), int(top_k), float(top_p))))
    return found


def test_what_is_kept_is_what_a_sort_keeps() -> None:
    alone = 0
    for scores, sampling in cases():
        found = filter_scores(scores, sampling)
        np.testing.assert_array_equal(found, sorted_filter(scores, sampling), err_msg=str(sampling))
        alone += np.count_nonzero(np.isfinite(found)) == 1
    assert alone > 50, "the cases have some where one id has the mass"


def test_a_sure_choice_takes_no_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.zeros(5000, np.float32)
    scores[17] = 30
    monkeypatch.setattr(drawing.np, "sort", None)
    assert sample(scores, 0.999, Sampling(0.6, top_p=0.95), ()) == 17
    assert sample(scores, 0.5, Sampling(0.6), ()) == 17
    scores[4] = 29  # not so sure any more
    with pytest.raises(TypeError):
        sample(scores, 0.5, Sampling(0.6, top_p=0.95), ())

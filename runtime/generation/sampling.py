"""Choosing text ids from scores, with the randomness as an input.

The same definition as the sampler inside the patch decoder's graph: temperature, top_k, top_p, then
removal of ids, then inverse CDF in id order, in float32. Audio codes are drawn in that graph; text
ids are drawn here, because 150,000 scores are cheaper to sort on the host.
"""

import numpy as np
from mimo_edge.runtime.chat.presets import Sampling
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class Noise:
    """Uniform numbers in [0, 1) of one answer. Any step can be asked for, in any order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, step: int, count: int) -> Scores:
        """[count] float32; the first is the text id's, the others the codes' in frame order."""
        source = np.random.Philox(key=self.seed, counter=[0, 0, 0, step])
        return np.random.Generator(source).random(count, dtype=np.float32)


def filter_scores(scores: Scores, sampling: Sampling) -> Scores:
    """Scores [V] scaled and filtered; removed ids are -inf. Ties with the last kept id are kept."""
    scaled = scores.astype(np.float32) / np.float32(sampling.temperature or 1.0)
    ascending = np.sort(scaled)
    kept_from = ascending[0]
    if sampling.top_k > 0:
        kept_from = ascending[-min(sampling.top_k, len(ascending))]
    survivors = ascending[np.searchsorted(ascending, kept_from) :]
    cumulative = np.cumsum(softmax(survivors), dtype=np.float32)
    kept = cumulative > np.float32(1.0) - np.float32(sampling.top_p)
    kept[-1] = True
    kept_from = survivors[np.argmax(kept)]
    return np.where(scaled < kept_from, np.float32(-np.inf), scaled)


def sample(scores: Scores, uniform: float, sampling: Sampling, removed: tuple[int, ...]) -> int:
    """One id from scores [V]. Greedy takes the lowest of equal ids.

    Where removal leaves no candidate, the best id that is not removed is taken.
    """
    allowed = scores
    if removed:
        allowed = scores.copy()
        allowed[list(removed)] = -np.inf
    if sampling.greedy:
        return int(np.argmax(allowed))
    candidates = filter_scores(scores, sampling)
    candidates[list(removed)] = -np.inf
    if candidates.max() == -np.inf:
        return int(np.argmax(allowed))
    return draw(candidates, uniform)


def draw(candidates: Scores, uniform: float) -> int:
    """Inverse CDF in id order."""
    probabilities = softmax(candidates)
    cumulative = np.cumsum(probabilities, dtype=np.float32)
    target = np.float32(uniform) * cumulative[-1]
    chosen = int(np.searchsorted(cumulative, target, side="right"))
    # rounding can push the target to the very end: stay on the last id that is possible
    return min(chosen, int(np.flatnonzero(probabilities)[-1]))


def softmax(scores: Scores) -> Scores:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum(dtype=np.float32)

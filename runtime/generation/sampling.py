"""Choosing text ids from scores, with the randomness as an input.

The same definition as the sampler inside the patch decoder's graph: temperature, top_k, top_p, then
removal of ids, then inverse CDF in id order, in float32. Audio codes are drawn in that graph; text
ids are drawn here, because 150,000 scores are cheaper to sort on the host.
"""

import numpy as np
from mimo_edge.runtime.chat.presets import Sampling
from numpy.typing import NDArray

Scores = NDArray[np.float32]
_CLEAR = 1e-3  # of the mass: far above the rounding of running sums over any vocabulary


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
    return np.where(scaled < _kept_from(scaled, sampling), np.float32(-np.inf), scaled)


def _kept_from(scaled: Scores, sampling: Sampling) -> np.float32:
    """The lowest score that is kept.

    What is kept has, from the best score down, more than top_p of the mass, or else is the best. To
    know that takes a sort, but not where the best one has the mass alone: most text ids that are
    drawn while the model speaks.
    """
    if sampling.top_k > 0:
        at = len(scaled) - min(sampling.top_k, len(scaled))
        scaled = scaled[scaled >= np.partition(scaled, at)[at]]
    elif sampling.top_p < 1 - _CLEAR:
        best = scaled.max()
        mass = np.exp(scaled - best).sum(dtype=np.float64) * (sampling.top_p + _CLEAR)
        if np.count_nonzero(scaled == best) > mass:
            return np.float32(best)
    elif sampling.top_p == 1:  # all that have any mass
        return np.float32(scaled[softmax(scaled) > 0].min())
    ascending = np.sort(scaled)
    cumulative = np.cumsum(softmax(ascending), dtype=np.float32)
    kept = cumulative > np.float32(1.0) - np.float32(sampling.top_p)
    kept[-1] = True
    return np.float32(ascending[np.argmax(kept)])


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
    if np.count_nonzero(candidates > -np.inf) == 1:
        return int(np.argmax(candidates))
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

"""Choices of a side against the scores of the model: equal, near ties, or real differences."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.sampling import filter_scores, sample
from numpy.typing import NDArray

EQUAL, NEAR, DIFFERENT = "equal", "near tie", "different"


@dataclass(frozen=True)
class NearTies:
    """Below these margins a choice is a near tie: of scores, and of a uniform number."""

    scores: float
    probability: float


@dataclass(frozen=True)
class Choice:
    """One decision: what the model chose, what the side chose, and by what margin.

    `margin` is in scores where the choice is greedy, else of the uniform number; None where the
    model's scores are not known.
    """

    expected: int
    chosen: int
    margin: float | None
    kind: str  # EQUAL, NEAR or DIFFERENT


def judge_choice(
    scores: Floats,
    chosen: int,
    sampling: Sampling,
    uniform: float,
    removed: tuple[int, ...],
    near: NearTies,
) -> Choice:
    """Judge what a side chose by the model's scores [V]."""
    expected = sample(scores, uniform, sampling, removed)
    if chosen == expected:
        return Choice(expected, chosen, 0.0, EQUAL)
    if not 0 <= chosen < len(scores):
        return Choice(expected, chosen, float("inf"), DIFFERENT)
    if sampling.greedy:
        margin, limit = float(scores[expected] - scores[chosen]), near.scores
    else:
        candidates = filter_scores(scores, sampling).astype(np.float64)
        candidates[list(removed)] = -np.inf
        limit = near.probability
        margin = _distance(candidates, chosen, uniform)
    return Choice(expected, chosen, margin, NEAR if margin < limit else DIFFERENT)


def _distance(candidates: NDArray[np.float64], chosen: int, uniform: float) -> float:
    """From a uniform number to where the choice of `chosen` begins or ends; infinite where the
    model had nothing to choose from."""
    highest = candidates.max()
    if highest == -np.inf:
        return float("inf")
    powers = np.exp(candidates - highest)
    edges = np.concatenate(([0.0], powers.cumsum() / powers.sum()))
    return float(max(edges[chosen] - uniform, uniform - edges[chosen + 1], 0.0))


@dataclass(frozen=True)
class Agreement:
    """A count of choices. Near ties are left out of the share, on both sides of it."""

    count: int
    equal: int
    near_ties: int
    largest_margin: float | None  # of real differences: a near-tie limit above passes all

    @property
    def share(self) -> float:
        judged = self.count - self.near_ties
        return self.equal / judged if judged else 1.0

    @classmethod
    def of(cls, choices: Iterable[Choice]) -> "Agreement":
        all_of_them = list(choices)
        kinds = [choice.kind for choice in all_of_them]
        real = [c.margin for c in all_of_them if c.kind == DIFFERENT and c.margin is not None]
        return cls(len(kinds), kinds.count(EQUAL), kinds.count(NEAR), max(real) if real else None)


def log_softmax(scores: Floats) -> NDArray[np.float64]:
    """Over the last axis."""
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(scores: Floats, own: Floats) -> NDArray[np.float64]:
    """KL(own || scores) of each row of scores [N, V], in nats."""
    theirs, ours = log_softmax(scores), log_softmax(own)
    p = np.exp(ours)
    with np.errstate(invalid="ignore"):  # -inf of both: an id that neither can choose
        gap = np.where(p > 0, p * (ours - theirs), 0)
    return gap.sum(-1).clip(min=0)  # rounding can go below


def entropy(scores: Floats) -> NDArray[np.float64]:
    """Of each row of scores [N, V], in nats."""
    logs = log_softmax(scores)
    return -(np.exp(logs) * logs).sum(-1)


def gate(scores: Floats, empty_id: int) -> Floats:
    """[N, V] -> [N, 2]: the best score of any text id, and that of speech."""
    text = scores.copy()
    text[:, empty_id] = -np.inf
    return np.stack((text.max(-1), scores[:, empty_id]), axis=-1)

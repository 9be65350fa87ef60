"""Level 5 of the ladder: a bundle in another precision against the float32 one, piece by piece and
along recorded sequences.

Choices are compared as they would be made greedily. Where the float32 model itself hardly prefers
one, a different choice says little: such near ties are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mimo_edge.parity.choices import divergence, gate
from mimo_edge.parity.forced import Led, Recorded
from mimo_edge.parity.tolerances import NEAR_TIE, snr
from mimo_edge.runtime.backends.base import Floats, Ints
from numpy.typing import NDArray


@dataclass(frozen=True)
class Closeness:
    """How near values are. `snr` in dB, the worst cosine of any row."""

    snr: float
    cosine: float

    @classmethod
    def of(cls, actual: NDArray, expected: NDArray) -> "Closeness":
        """Of arrays whose last axis is a vector."""
        a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        size = np.linalg.norm(a, axis=-1) * np.linalg.norm(e, axis=-1)
        dot = (a * e).sum(-1)
        cosine = np.divide(dot, size, out=np.ones_like(dot), where=size > 0)
        return cls(snr(a, e), float(cosine.min()) if cosine.size else 1.0)


@dataclass(frozen=True)
class Choices:
    """Choices of two models at the same positions."""

    count: int
    differ: int  # near ties included
    near_ties: int  # of those: the float model's margin is below NEAR_TIE
    kl: float  # mean divergence of the distributions, in nats
    first: int | None  # the first position that differs, near ties aside
    margin: float | None  # of the float model there, in its scores

    @property
    def agreement(self) -> float:
        """The share of equal choices, near ties left out of both."""
        judged = self.count - self.near_ties
        return 1.0 if judged == 0 else 1 - (self.differ - self.near_ties) / judged


@dataclass(frozen=True)
class Comparison:
    """A bundle against the float32 one, along the same sequences."""

    embeddings: Closeness
    local_hidden: Closeness
    text: Choices
    gate: Choices  # speech or text: the choice between the empty id and the best other
    codes: tuple[Choices, ...]  # by codebook


def compare(
    led: Led, own: Led, sequences: Sequence[Recorded], empty_id: int, empty_codes: Sequence[int]
) -> Comparison:
    """`led` is the bundle that is judged, `own` the float32 one.

    Of text, the choices that made the answers: what ends one is read too, and nothing follows it.
    """
    text, text_own = (
        np.concatenate(
            [states[s.answer - 1 : -1] for states, s in zip(of.logits, sequences, strict=True)]
        )
        for of in (led, own)
    )
    codes = []
    for k, empty in enumerate(empty_codes):
        pair = [
            np.concatenate([scores[k].reshape(-1, scores[k].shape[-1]) for scores in of.scores])
            for of in (led, own)
        ]
        for scores in pair:
            scores[:, empty] = -np.inf
        codes.append(choices(*pair))
    return Comparison(
        Closeness.of(np.concatenate(led.embeddings), np.concatenate(own.embeddings)),
        Closeness.of(np.concatenate(led.local_hidden), np.concatenate(own.local_hidden)),
        choices(text, text_own),
        choices(gate(text, empty_id), gate(text_own, empty_id)),
        tuple(codes),
    )


def choices(scores: Floats, own: Floats) -> Choices:
    """Compare scores [N, V] with the float model's own."""
    chosen, wanted = scores.argmax(-1), own.argmax(-1)
    differ = chosen != wanted
    # by how much the float model prefers its choice to the other model's
    rows: Ints = np.arange(len(own))
    margin = own[rows, wanted] - own[rows, chosen]
    near = differ & (margin < NEAR_TIE)
    real = np.flatnonzero(differ & ~near)
    first = int(real[0]) if real.size else None
    return Choices(
        count=len(own),
        differ=int(differ.sum()),
        near_ties=int(near.sum()),
        kl=mean_divergence(scores, own),
        first=first,
        margin=None if first is None else float(margin[first]),
    )


def mean_divergence(scores: Floats, own: Floats) -> float:
    """Mean KL(own || scores) of the distributions that scores [N, V] stand for, in nats."""
    return float(divergence(scores, own).mean()) if len(own) else 0.0

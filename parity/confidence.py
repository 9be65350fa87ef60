"""How sure a rate of errors is: intervals by drawing the utterances again (bootstrap)."""

from collections.abc import Sequence

import numpy as np

DRAWS = 4000
LEVEL = 0.95


def interval(edits: Sequence[float], words: Sequence[int], seed: int = 0) -> tuple[float, float]:
    """Where the rate edits / words lies in 95 % of the draws; utterances are drawn whole.

    For the difference of two builds on the same utterances give the difference of their edits.
    """
    wrong, said = np.asarray(edits, float), np.asarray(words, float)
    picks = np.random.default_rng(seed).integers(0, len(wrong), (DRAWS, len(wrong)))
    rates = wrong[picks].sum(1) / said[picks].sum(1)
    low, high = np.quantile(rates, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)

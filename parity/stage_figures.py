"""How near the values of a stage are: the figures of the report, worst element included."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mimo_edge.parity.tolerances import snr
from numpy.typing import NDArray


@dataclass(frozen=True)
class Figures:
    """Of arrays whose last axis is a vector. `required` is the smallest absolute tolerance that
    would pass. Infinite differences are where a value is not finite or shapes differ."""

    count: int
    max_abs: float
    mean_abs: float
    snr: float  # dB
    cosine_mean: float
    cosine_min: float
    worst_at: tuple[int, ...]
    worst_value: float
    worst_expected: float

    @property
    def required(self) -> float:
        return self.max_abs

    @classmethod
    def of(cls, actual: NDArray[Any], expected: NDArray[Any]) -> "Figures":
        if actual.shape != expected.shape or not np.isfinite(actual).all():
            inf = float("inf")
            return cls(expected.size, inf, inf, -inf, -1.0, -1.0, (), inf, inf)
        if expected.size == 0:
            return cls(0, 0.0, 0.0, float("inf"), 1.0, 1.0, (), 0.0, 0.0)
        a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        gap = np.abs(a - e)
        place = np.unravel_index(int(gap.argmax()), gap.shape)
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(e, axis=-1)
        dot = (a * e).sum(-1)
        cosine = np.divide(dot, norms, out=np.ones_like(dot), where=norms > 0)
        return cls(
            int(gap.size),
            float(gap.max()),
            float(gap.mean()),
            snr(a, e),
            float(cosine.mean()),
            float(cosine.min()),
            tuple(int(i) for i in place),
            float(a[place]),
            float(e[place]),
        )

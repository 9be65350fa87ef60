"""Assertions of the golden tests: a difference against a named tolerance."""

from typing import Any

import numpy as np
from mimo_edge.parity import tolerances
from mimo_edge.parity.tolerances import Tolerance


def close(actual: Any, expected: np.ndarray, tolerance: Tolerance, what: str) -> None:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    gap = tolerances.difference(actual, expected)
    assert gap <= tolerance.absolute, f"{what}: {gap:.2e} > {tolerance.absolute} ({tolerance.name})"


def equal(actual: Any, expected: np.ndarray, what: str) -> None:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    wrong = int((actual != expected).sum())
    assert wrong == 0, f"{what}: {wrong} of {expected.size} differ"


def mel_close(actual: Any, expected: np.ndarray, what: str) -> None:
    relative, log = tolerances.mel_difference(np.asarray(actual), expected)
    assert relative <= tolerances.MEL_RELATIVE, f"{what}: mel differs by {relative:.2e} of its peak"
    assert log <= tolerances.MEL_LOG, f"{what}: log-mel differs by {log:.2e}"

"""Level 5's measures on scores whose answer is known."""

import math

import numpy as np
import pytest
from mimo_edge.parity.forced import Led, Recorded
from mimo_edge.parity.precision import Closeness, choices, compare, mean_divergence
from mimo_edge.parity.tolerances import NEAR_TIE


def test_closeness_is_that_of_the_worst_row() -> None:
    expected = np.array([[3.0, 4.0], [1.0, 0.0]])
    found = Closeness.of(np.array([[3.0, 4.0], [0.0, 1.0]]), expected)
    assert found.cosine == 0 and found.snr == pytest.approx(10 * math.log10(26 / 2))
    assert Closeness.of(expected, expected) == Closeness(math.inf, 1.0)
    assert Closeness.of(np.full((1, 2), np.nan), expected[:1]).snr == -math.inf


def test_a_near_tie_is_no_divergence() -> None:
    own = np.array([[0, 5], [0, NEAR_TIE / 2], [0, NEAR_TIE * 2], [0, 1]], np.float32)
    other = np.array([[0, 4], [1, 0], [1, 0], [1, 0]], np.float32)
    found = choices(other, own)
    assert (found.count, found.differ, found.near_ties) == (4, 3, 1)
    assert found.first == 2 and found.margin == pytest.approx(NEAR_TIE * 2)
    assert found.agreement == pytest.approx(1 / 3)
    same = choices(own, own)
    assert (same.differ, same.first, same.margin, same.agreement) == (0, None, None, 1.0)
    assert same.kl == 0


def test_divergence_is_kullback_leibler() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    wanted = float((p * np.log(p / q)).sum())
    # a shift of scores is no change, and an id that neither can choose counts for nothing
    scores = [np.pad(np.log(x), ((0, 0), (0, 1)), constant_values=-np.inf) for x in (q + 0, p)]
    assert mean_divergence(scores[0] + 3, scores[1]) == pytest.approx(wanted)


def led(logits: np.ndarray, scores: np.ndarray) -> Led:
    return Led([logits], [logits], [logits], [[scores, scores]])


def test_gate_and_codes_are_judged_apart() -> None:
    """Empty id 0, answer from position 1 on: position 0 foretells it, and is judged too; the last
    one foretells nothing that was ever said."""
    sequence = Recorded(np.zeros(4, np.int64), np.zeros((4, 2, 1), np.int64), 1)
    own = np.array([[5, 0, 0], [0, 5, 4], [5, 0, 1], [5, 0, 0]], np.float32)
    other = np.array([[5, 0, 0], [0, 4, 5], [0, 0, 1], [0, 5, 0]], np.float32)
    scores = np.array([[[0, 1, 9]]], np.float32)  # code 2 is the empty one: it is never drawn
    turned = np.array([[[1, 0, 8]]], np.float32)
    found = compare(led(other, turned), led(own, scores), [sequence], 0, (2, 2))
    assert (found.text.count, found.text.differ, found.text.first) == (3, 2, 1)
    assert (found.gate.count, found.gate.differ, found.gate.first) == (3, 1, 2)
    assert [c.differ for c in found.codes] == [1, 1] and found.codes[0].margin == 1
    assert found.embeddings.snr < 20 < math.inf


def test_choices_before_the_answer_are_not_judged() -> None:
    sequence = Recorded(np.zeros(4, np.int64), np.zeros((4, 2, 1), np.int64), 3)
    own = np.eye(4, 3, dtype=np.float32)
    other = np.ones((4, 3), np.float32)
    other[2] = own[2]
    empty = np.zeros((0, 1, 3), np.float32)
    found = compare(led(other, empty), led(own, empty), [sequence], 0, (2, 2))
    assert found.text.count == 1 and found.text.differ == 0
    assert found.codes[0].count == 0 and found.codes[0].agreement == 1

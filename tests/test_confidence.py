"""Intervals of error rates."""

from mimo_edge.parity.confidence import interval


def test_the_rate_lies_inside_and_more_utterances_narrow_it() -> None:
    edits, words = [0, 0, 1, 0, 2, 0], [6, 5, 6, 7, 6, 6]
    low, high = interval(edits, words)
    assert low < sum(edits) / sum(words) < high
    more = interval(edits * 20, words * 20)
    assert low < more[0] < more[1] < high
    assert interval(edits, words) == (low, high)


def test_what_never_errs_has_no_width() -> None:
    assert interval([0, 0], [3, 4]) == (0.0, 0.0)


def test_a_loss_and_a_gain_of_the_same_size_may_be_chance() -> None:
    low, high = interval([1, -1, 0, 0] * 5, [5] * 20)
    assert low < 0 < high

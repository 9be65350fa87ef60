"""Word error rate."""

import pytest
from mimo_edge.parity.word_errors import WordErrors, edits, words


@pytest.mark.parametrize(
    ("heard", "said", "wrong"),
    [
        ("", "", 0),
        ("a b c", "a b c", 0),
        ("a c", "a b c", 1),  # one left out
        ("a b x c", "a b c", 1),  # one put in
        ("a x c", "a b c", 1),  # one replaced
        ("", "a b c", 3),
        ("a b c", "", 3),
        ("b c d a", "a b c d", 2),
    ],
)
def test_edits(heard: str, said: str, wrong: int) -> None:
    assert edits(heard.split(), said.split()) == wrong
    assert edits(said.split(), heard.split()) == wrong


def test_only_words_count() -> None:
    assert words("The Light, please: it's ON!") == ["the", "light", "please", "its", "on"]
    assert (
        words("It\u2019s the child\u2019s.")
        == words("It's the child's.")
        == ["its", "the", "childs"]
    )
    assert words("我爱 ok 你。") == ["我", "爱", "ok", "你"]
    assert words(" …") == []


def test_rates_are_over_all_words_and_may_pass_one() -> None:
    errors = WordErrors()
    assert errors.rate == errors.right_rate == 0
    assert errors.add("Turn on the light.", "turn on the light") == 0
    assert errors.add("x y z", "one") == 3
    assert (errors.edits, errors.words, errors.right, errors.utterances) == (3, 5, 1, 2)
    assert errors.rate == 0.6 and errors.right_rate == 0.5
    assert WordErrors(edits=3, words=1).rate == 3

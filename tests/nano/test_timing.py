"""Word timing from nothing but the lengths of clips."""

import random

import numpy as np
import pytest
from mimo_edge.scripts.nano.timing import WordTiming

SECONDS = {"the": 0.11, "red": 0.29, "cup": 0.31, "is": 0.14, "blue": 0.33, "cup.": 0.42}


@pytest.fixture(scope="module")
def timing() -> WordTiming:
    rng, inner = random.Random(0), [w for w in SECONDS if w != "cup."]
    texts = [[*rng.choices(inner, k=rng.randint(1, 6)), "cup."] for _ in range(400)]
    return WordTiming.fit(
        (" ".join(text).capitalize(), sum(SECONDS[w] for w in text) + rng.gauss(0, 0.02))
        for text in texts
    )


def test_lengths_of_words_follow_from_those_of_texts(timing: WordTiming) -> None:
    assert len(timing.seconds) == len(SECONDS)
    for word, seconds in SECONDS.items():
        name = next(name for name in timing.seconds if name.rstrip("|") == word)
        assert timing.seconds[name] == pytest.approx(seconds, abs=0.02)


def test_a_pause_within_a_text_belongs_to_the_stop_before_it() -> None:
    even = ["A d c b.", "C b.", "C c b.", "D a d.", "D d.", "A d.", "A a d."]
    texts = [("A b. C d.", 0.8 + 0.35), *((text, 0.2 * len(text.split())) for text in even)] * 9
    ends = WordTiming.fit(texts).ends("A b. C d.", 1.15)
    np.testing.assert_allclose(ends, [0.2, 0.75, 0.95, 1.15], atol=0.02)


def test_the_last_word_ends_with_the_text(timing: WordTiming) -> None:
    ends = timing.ends("The red cup.", 1.64)  # twice as slow as it was learned
    np.testing.assert_allclose(ends, [0.22, 0.80, 1.64], atol=0.04)
    assert ends[-1] == pytest.approx(1.64)


def test_a_word_never_heard_lasts_as_long_as_the_mean(timing: WordTiming) -> None:
    red, unknown = timing.ends("red green", 1.0)  # "green" is the last word
    assert (unknown - red) / red == pytest.approx(timing.mean / timing.seconds["red"])


def test_a_word_lasts_some_time_whatever_the_lengths_say() -> None:
    timing = WordTiming.fit([("a b", 0.1), ("b", 0.3), ("a b b", 0.01)] * 10)
    assert min(timing.seconds.values()) > 0 and (np.diff(timing.ends("a b a b", 1.0)) > 0).all()

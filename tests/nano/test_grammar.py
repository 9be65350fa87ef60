"""The sentences: two sides that never meet, and the same ones every time."""

import pytest
from mimo_edge.scripts.nano import data, grammar, voices


def test_train_and_held_out_share_no_sentence() -> None:
    for seed in (1, 2):
        train = {s.text.lower() for s in grammar.choose(2000, seed, held_out=False)}
        held_out = {s.text.lower() for s in grammar.choose(200, seed + 5, held_out=True)}
        assert len(train) == 2000
        assert len(held_out) == 200
        assert not train & held_out


def test_a_choice_depends_on_its_seed_alone() -> None:
    first, again = (grammar.choose(100, 7, held_out=False) for _ in range(2))
    assert first == again
    assert first != grammar.choose(100, 8, held_out=False)


def test_every_kind_has_held_out_sentences_and_no_double() -> None:
    for kind in grammar.kinds():
        texts = [s.text for s in grammar.sentences(kind)]
        assert len(set(texts)) == len(texts), kind
        assert 0.05 < sum(s.held_out for s in grammar.sentences(kind)) / len(texts) < 0.2, kind


def test_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="there are only"):
        grammar.choose(100_000, 1, held_out=True)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (300, "three hundred"),
        (305, "three hundred and five"),
        (999, "nine hundred and ninety nine"),
    ],
)
def test_numbers_in_words(number: int, text: str) -> None:
    assert grammar.number_words(number) == text


def test_the_plan_keeps_sentences_and_voices_apart() -> None:
    clips = data.clips(data.Plan(sentences=120, held_out=20, loose=10, own_loose=6))
    assert clips == data.clips(data.Plan(sentences=120, held_out=20, loose=10, own_loose=6))
    by_part = {part: [c for c in clips if c.part == part] for part in {c.part for c in clips}}
    assert set(by_part) == {"train", "held_out", "new_voice"}
    new_voices = {c.reading.voice for c in by_part["new_voice"]}
    assert new_voices == {voices.HELD_OUT}
    assert not new_voices & {c.reading.voice for c in by_part["train"] + by_part["held_out"]}
    train = {c.text for c in by_part["train"]}
    assert not train & {c.text for c in by_part["held_out"] + by_part["new_voice"]}

"""Lessons: what the runtime builds, continued by what the runtime would have generated."""

import random
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.parity.word_errors import words
from mimo_edge.runtime.chat.answer import answer_text, split_answer
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.chat.segments import (
    PAD,
    audio_segment,
    pad_codes,
    streaming_segment,
    text_segment,
)
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.scripts.nano import data, grammar
from mimo_edge.scripts.nano.codes import Coded, Codes
from mimo_edge.scripts.nano.lessons import (
    LAYOUT,
    SILENT,
    TASKS,
    Lessons,
    Library,
    Reading,
    Teacher,
    collate,
    misheard,
    word_timing,
)
from mimo_edge.scripts.nano.sizes import (
    BPE_SIZE,
    CODEBOOKS,
    NANO,
    SPECIALS,
)
from mimo_edge.scripts.nano.text_tokenizer import write_tokenizer

TEXT = "The kitchen light is on. It is quarter to twelve."


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Teacher(folder)


def some_codes(frames: int, seed: int = 0) -> Codes:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.array(CODEBOOKS)[:, None], (len(CODEBOOKS), frames))


def some_reading(codes: Codes, text: str = TEXT) -> Reading:
    """All words equally long, from the first frame to the last."""
    count = len(text.split())
    return Reading(text, codes, np.arange(1, count + 1) * codes.shape[1] * 0.04 / count)


def test_the_tokenizer_has_the_released_specials_and_whole_words(teacher: Teacher) -> None:
    tokenizer = teacher.tokenizer
    assert tokenizer.vocab_size == BPE_SIZE + len(SPECIALS) <= NANO.language_model["vocab_size"]
    order = ["sosp", "eosp", "empty", "Human", "SpeechLM", "sostm", "eostm", "eot"]
    ids = [tokenizer.encode(f"<|{name}|>") for name in order]
    assert ids == [[ids[0][0] + i] for i in range(len(order))]
    texts = [s.text for kind in grammar.kinds() for s in grammar.sentences(kind)[::11]]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    said, tokens = (sum(map(len, map(split, texts))) for split in (words, tokenizer.encode))
    assert tokens < 1.35 * said


def test_spoken_answers_are_the_interleaved_layout(teacher: Teacher) -> None:
    codes, rng = some_codes(47), random.Random(4)
    lesson = teacher.tts(some_reading(codes), rng)
    special = teacher.tokenizer.special
    ids = teacher.tokenizer.encode(TEXT)
    padded = pad_codes(codes, LAYOUT.group_size)
    whole = streaming_segment(ids, padded, LAYOUT, special)
    group = LAYOUT.group_size
    # the prompt ends with the sostm that opens the segment
    np.testing.assert_array_equal(lesson.grid[:, (lesson.start - 1) * group :], whole)
    prompt = teacher.prompts.tts(TEXT, rng=random.Random(4))
    np.testing.assert_array_equal(lesson.grid[:, : lesson.start * group], prompt)
    row = whole[0, ::group].tolist()
    assert row[:11] == [special.sostm, *ids[:5], *[special.empty] * 5]
    assert row[11:17] == [*ids[5:10], special.empty]
    assert row[-1] == special.eostm
    assert row.count(special.eot) == 1


def test_a_spoken_answer_is_what_the_runtime_takes_apart(teacher: Teacher) -> None:
    codes = some_codes(48)
    lesson = teacher.dialogue(some_reading(some_codes(30, 1)), some_reading(codes))
    special = teacher.tokenizer.special
    generated = lesson.grid[:, lesson.start * LAYOUT.group_size :]
    answer = split_answer(generated, LAYOUT, special, stopped=True)
    np.testing.assert_array_equal(answer.codes, codes)
    assert answer_text(answer.text_ids, teacher.tokenizer) == TEXT
    assert generated[0, -LAYOUT.group_size] in PRESETS["dialogue"].stop_ids(special)


def test_written_answers_follow_the_prompt_and_stop(teacher: Teacher) -> None:
    heard = some_reading(some_codes(41))
    special = teacher.tokenizer.special
    lessons = {
        "asr": teacher.asr(heard, random.Random(2)),
        "speech-to-text": teacher.speech_to_text(heard, TEXT),
        "chat": teacher.chat("What colour is the sky?", TEXT),
    }
    ids = [*teacher.tokenizer.encode(TEXT), special.im_end]
    for task, lesson in lessons.items():
        answer = lesson.grid[:, lesson.start * LAYOUT.group_size :]
        np.testing.assert_array_equal(answer, text_segment(ids, LAYOUT), err_msg=task)
        assert ids[-1] in PRESETS[task].stop_ids(special)
    prompt = teacher.prompts.asr(heard.codes, rng=random.Random(2))
    start = lessons["asr"].start * LAYOUT.group_size
    np.testing.assert_array_equal(lessons["asr"].grid[:, :start], prompt)
    speech = audio_segment(pad_codes(heard.codes, LAYOUT.group_size), LAYOUT, special)
    columns = np.flatnonzero(prompt[0] == special.sosp)
    at = int(columns[0])
    np.testing.assert_array_equal(prompt[:, at : at + speech.shape[1]], speech)


def test_batches_follow_from_their_number_and_fill_up_on_the_right(teacher: Teacher) -> None:
    plan = data.Plan(sentences=40, held_out=4, loose=20, own_loose=20)
    clips = [c for c in data.clips(plan) if c.part == "train"]
    coded = [
        Coded(clip, some_codes(40 + i % 9, i), some_codes(40, i + 1000) if clip.own else None)
        for i, clip in enumerate(clips)
    ]
    library = Library.of(coded, "train", word_timing(coded))
    first, second = (Lessons(teacher, library, batch=4, seed=1) for _ in range(2))
    drawn = [first[number] for number in range(30)]
    for number in (29, 3, 17):
        for lesson, same in zip(drawn[number], second[number], strict=True):
            np.testing.assert_array_equal(lesson.grid, same.grid)
    assert {lesson.task for batch in drawn for lesson in batch} == set(TASKS)
    grid, answers, words = collate(drawn[0], SPECIALS["<|endoftext|>"])
    for row, answer, word, lesson in zip(grid, answers, words, drawn[0], strict=True):
        size = lesson.grid.shape[1]
        np.testing.assert_array_equal(row[:, :size], lesson.grid)
        assert set(row[0, size:]) <= {SPECIALS["<|endoftext|>"], PAD}
        assert answer.sum() == lesson.patches - lesson.start
        assert word[: lesson.patches].tolist() == lesson.words.tolist()
        assert set(word[lesson.patches :]) <= {SILENT}


def test_patches_are_marked_with_the_word_that_sounds(teacher: Teacher) -> None:
    ends = np.array([0.3, 0.5, 0.9, 1.0, 1.4])  # seconds; a patch takes 0.16
    heard = Reading("It is quarter to twelve.", some_codes(44), ends)
    said = Reading("Twelve.", some_codes(9), np.array([0.3]))
    special, encode = teacher.tokenizer.special, teacher.tokenizer.encode
    it, is_, quarter, twelve = (encode(f" {w}")[0] for w in ("it", "is", "quarter", "twelve"))
    # middles at 0.08, 0.24 .. 1.68; the short "to" lies between two
    question = [it, it, is_, quarter, quarter, quarter, *[twelve] * 3, SILENT, SILENT]
    answer = [twelve, twelve, SILENT]
    wanted = {
        "dialogue": (teacher.dialogue(heard, said), question + answer),
        "tts": (teacher.tts(said, random.Random(1)), answer),
        "asr": (teacher.asr(heard, random.Random(1)), question),
        "speech-to-text": (teacher.speech_to_text(heard, "Twelve."), question),
        "chat": (teacher.chat("Is it quarter to twelve?", "Twelve."), []),
    }
    for task, (lesson, names) in wanted.items():
        speech = lesson.grid[0, :: LAYOUT.group_size] == special.empty
        assert lesson.words[speech].tolist() == names, task
        assert set(lesson.words[~speech]) == {SILENT}


def test_a_word_has_one_name_wherever_it_stands(teacher: Teacher) -> None:
    codes, rng = some_codes(8), random.Random(0)
    ends = np.array([0.16, 0.32])
    first, second = (
        teacher.tts(Reading(text, codes, ends), rng).words
        for text in ("Kitchen door.", "Door kitchen.")
    )
    assert first[first != SILENT].tolist() == second[second != SILENT].tolist()[::-1]


def test_the_tokenizer_is_the_same_every_time(tmp_path: Path, teacher: Teacher) -> None:
    write_tokenizer(tmp_path)
    again = TextTokenizer.from_folder(tmp_path)
    assert again.encode(TEXT) == teacher.tokenizer.encode(TEXT)


def test_what_is_fed_has_some_wrong_codes_and_every_word_right(teacher: Teacher) -> None:
    lessons = [teacher.tts(some_reading(some_codes(200, i)), random.Random(i)) for i in range(8)]
    grid, _, _ = collate(lessons, SPECIALS["<|endoftext|>"])
    fed = misheard(grid, 5)
    np.testing.assert_array_equal(fed, misheard(grid, 5))
    np.testing.assert_array_equal(fed[:, 0], grid[:, 0])
    empty = np.array(CODEBOOKS)[:, None]
    spoken = grid[:, 1:] < empty
    wrong = fed[:, 1:] != grid[:, 1:]
    assert (
        not (wrong & ~spoken).any()
        and (fed[:, 1:][spoken] < (grid[:, 1:] * 0 + empty)[spoken]).all()
    )
    assert 0.02 < wrong.sum() / spoken.sum() < 0.09

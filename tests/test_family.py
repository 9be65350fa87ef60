"""What differs between the models of the family: data, tags in an answer, pieces of audio."""

import random

import numpy as np
import pytest
import torch
from mimo_edge.mimo_ref import family as reference
from mimo_edge.mimo_ref import pieces as reference_pieces
from mimo_edge.runtime.audio.pieces import wav_pieces
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.family import LANGUAGES, MEMBERS, MIMO_AUDIO, MIMO_V25_ASR
from mimo_edge.runtime.chat.tags import TagFilter, without_tags
from mimo_edge.runtime.chat.templates import ASR_EN, ASR_ZH, asr_template

TAGS = ("<chinese>", "<english>")
TEXTS = (
    "<chinese>你好",
    "a <english>b< c",
    "<engl",
    "<<english>",
    "<chi<english>x",
    "no tag < at > all",
    "",
)


def test_reference_and_runtime_know_the_same_members() -> None:
    assert set(MEMBERS) == set(reference.ARCHITECTURES.values())
    assert MEMBERS[MIMO_V25_ASR].piece_seconds == reference_pieces.PIECE_SECONDS
    assert tuple(MEMBERS[MIMO_V25_ASR].languages.values()) == TAGS
    assert ("auto", *MEMBERS[MIMO_V25_ASR].languages) == LANGUAGES


def test_languages_and_tasks() -> None:
    asr, audio = MEMBERS[MIMO_V25_ASR], MEMBERS[MIMO_AUDIO]
    assert [asr.tag(name) for name in (None, "auto", "chinese", "english")] == ["", "", *TAGS]
    assert audio.tag(None) == "" and not audio.listens_only and asr.listens_only
    for name in LANGUAGES:
        with pytest.raises(InputError, match="MiMo-Audio takes no language"):
            audio.tag(name)
    asr.check_task("asr")
    audio.check_task("tts")
    with pytest.raises(InputError, match="does asr only, not tts"):
        asr.check_task("tts")


def test_the_instruction_is_in_the_language() -> None:
    rng = random.Random(0)
    assert {asr_template(rng, "english") for _ in range(300)} == set(ASR_EN)
    assert {asr_template(rng, "chinese") for _ in range(300)} == set(ASR_ZH)
    for language in (None, "auto"):
        assert {asr_template(rng, language) for _ in range(500)} == {*ASR_EN, *ASR_ZH}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_tags_in_a_stream(text: str, size: int) -> None:
    stream = TagFilter(TAGS)
    pieces = [stream.feed(text[at : at + size]) for at in range(0, len(text), size)]
    assert "".join(pieces) + stream.finish() == without_tags(text, TAGS)


def test_what_cannot_become_a_tag_does_not_wait() -> None:
    stream = TagFilter(TAGS)
    assert stream.feed("a<") == "a" and stream.feed("b") == "<b"
    assert TagFilter(()).feed("<chi") == "<chi"


@pytest.mark.parametrize("samples", [1, 959, 960, 3000, 3001, 3959, 3960, 6959, 7000])
def test_pieces_as_in_the_reference(samples: int) -> None:
    wav = np.arange(1, samples + 1, dtype=np.float32)
    expected = reference_pieces.wav_pieces(torch.from_numpy(wav), 3000, 960)
    pieces = wav_pieces(wav, 3000, 960)
    assert [p.tolist() for p in pieces] == [p.tolist() for p in expected]

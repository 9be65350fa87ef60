"""Text -> speech -> text on nano, held to the model's own score (assets/nano/score.json).

Nothing here compares numbers with the reference: it is the sound and the words that are judged, so
a recipe or a streaming setting that passes here is one that a listener would take.
"""

import dataclasses
import hashlib

import pytest
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model
from mimo_edge.parity.speech_score import (
    Judge,
    Streaming,
    Utterance,
    UtteranceSet,
    totals,
)
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.nano.save import CHECKSUMS
from mimo_edge.scripts.score import Score, losses

from tests.bundles import NANO

MEGABYTES = 25


def test_the_checkpoint_loads_strictly_and_is_small() -> None:
    load_language_model(NANO / "language_model")
    load_audio_tokenizer(NANO / "audio_tokenizer")
    for line in (NANO / CHECKSUMS).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((NANO / name).read_bytes()).hexdigest() == digest, name
    assert sum(p.stat().st_size for p in NANO.rglob("*") if p.is_file()) <= MEGABYTES * 1e6


def test_nano_speaks_and_listens(
    nano: MimoAudio, utterances: UtteranceSet, own_score: Score
) -> None:
    score = totals(Judge(nano).all(utterances))
    assert set(score) == {"asr", "tts", "dialogue"}
    assert not losses(score, own_score)


@pytest.mark.parametrize("streaming", [Streaming(), Streaming(left=250, right=40)])
def test_streamed_speech_is_as_good(
    nano: MimoAudio, utterances: UtteranceSet, own_score: Score, streaming: Streaming
) -> None:
    score = totals(Judge(nano, streaming).tts(utterances.tts))
    assert not losses(score, {"tts": own_score["tts"]})


def test_the_gate_notices_that_the_first_codebook_is_upside_down(
    nano: MimoAudio, utterances: UtteranceSet, own_score: Score
) -> None:
    def broken(utterance: Utterance) -> Utterance:
        codes = nano.encode(utterance.audio).copy()
        codes[0] = nano.layout.empty_codes[0] - 1 - codes[0]
        return Utterance(codec.decode(nano.backend, codes), utterance.text)

    worse = totals(Judge(nano).asr(map(broken, utterances.asr)))
    assert losses(worse, {"asr": own_score["asr"]})


def test_the_own_score_leaves_room_to_notice_a_loss(own_score: Score) -> None:
    limits = {"asr": 0.05, "tts": 0.1, "dialogue": 0.1}
    assert set(own_score) == set(limits)
    assert all(errors.rate <= limits[task] for task, errors in own_score.items())


def test_a_loss_within_the_tolerance_is_none_and_one_beyond_is() -> None:
    for edits, words, allowed in ((0, 100, 3), (1, 200, 7), (16, 100, 24)):  # the last by chance
        own = {"tts": WordErrors(edits, words, right=9, utterances=10)}
        for now, found in ((edits, 0), (allowed, 0), (allowed + 1, 1)):
            score = {"tts": dataclasses.replace(own["tts"], edits=now)}
            assert len(losses(score, own)) == found, (edits, words, now)

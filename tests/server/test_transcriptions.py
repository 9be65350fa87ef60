"""Transcription through OpenAI's client, in every format."""

import io
import re

import numpy as np
import openai
import pytest
import soundfile
from mimo_edge.runtime.audio.read import load_audio

from tests.bundles import ROOT
from tests.server.conftest import CLIP, Serving

SECOND = ROOT / "assets" / "utterances" / "listen-02.flac"


@pytest.fixture(scope="module")
def said(shared: Serving) -> list[str]:
    return shared.model.transcribe([CLIP, SECOND])


@pytest.fixture(scope="module")
def both() -> bytes:
    """Two recordings with two seconds of quiet between them."""
    wav = np.concatenate((load_audio(CLIP), np.zeros(48000, np.float32), load_audio(SECOND)))
    file = io.BytesIO()
    soundfile.write(file, wav, 24000, format="FLAC")
    return file.getvalue()


def test_json_and_text(client: openai.OpenAI, said: list[str]) -> None:
    made = client.audio.transcriptions.create(model="nano", file=CLIP)
    assert made.text == said[0] and made.usage is not None
    text = client.audio.transcriptions.create(model="nano", file=CLIP, response_format="text")
    assert text == f"{said[0]}\n"


def test_streamed(client: openai.OpenAI, said: list[str]) -> None:
    events = [*client.audio.transcriptions.create(model="nano", file=CLIP, stream=True)]
    deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
    assert len(deltas) > 3 and "".join(deltas) == said[0]
    assert events[-1].type == "transcript.text.done" and events[-1].text == said[0]


def test_times_are_those_of_the_pauses(client: openai.OpenAI, said: list[str], both: bytes) -> None:
    made = client.audio.transcriptions.create(
        model="nano", file=("two.flac", both), response_format="verbose_json"
    )
    assert made.segments is not None and [s.text for s in made.segments] == said
    first, second = made.segments
    length = len(load_audio(CLIP)) / 24000
    assert 0 <= first.start < first.end <= length + 0.1
    assert length + 1.9 < second.start < second.end <= made.duration
    assert made.text == " ".join(said)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles(client: openai.OpenAI, said: list[str], both: bytes, form: str) -> None:
    made = client.audio.transcriptions.create(
        model="nano", file=("two.flac", both), response_format=form
    )
    text = str(made)
    assert text.startswith("WEBVTT\n\n" if form == "vtt" else "1\n00:00:0")
    point = "." if form == "vtt" else ","
    line = rf"\d\d:\d\d:\d\d\{point}\d\d\d --> \d\d:\d\d:\d\d\{point}\d\d\d\n(.*)\n\n"
    assert re.findall(line, text) == said


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"file": ("x.wav", b"")}, "file"),
        ({"file": ("x.wav", b"not a sound" * 100)}, "file"),
        ({"language": "tlh"}, "language"),
        ({"prompt": "names: Zoë"}, "prompt"),
        ({"timestamp_granularities": ["word"]}, "times of words"),
        ({"response_format": "srt", "stream": True}, "stream"),
        ({"temperature": -3}, "temperature"),
    ],
)
def test_what_cannot_be_is_refused(
    client: openai.OpenAI, change: dict[str, object], word: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(**{"model": "nano", "file": CLIP, **change})
    assert isinstance(refused.value.body, dict) and word in refused.value.body["message"]

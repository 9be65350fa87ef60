"""Home Assistant's protocol, by its own client package, and by one that believes nothing."""

import asyncio
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.limits import Limits
from mimo_edge.runtime.server.sentences import MOST, Sentences
from mimo_edge.runtime.server.service import Streaming
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts import cli
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from tests.server.conftest import CLIP, Serving, serving, until

RATE = 24000
TEXT = "The red cup is on the table."
T = TypeVar("T")


@pytest.fixture(scope="module")
def running(nano: MimoAudio) -> Iterator[Serving]:
    how = Streaming(chunk=2)  # chunks that do not depend on the speed
    limits = Limits(queue=2, sessions=12)
    with serving(nano, wyoming=True, limits=limits, streaming=how) as server:
        yield server


class Talking(AsyncTcpClient):
    """The package's client, with a little more."""

    async def ask(self, *events: Any) -> None:
        for event in events:
            await self.write_event(event.event())

    async def until(self, kind: type[T]) -> list[Event]:
        """All events up to the first of this kind."""
        seen = []
        while (event := await self.read_event()) is not None:
            seen.append(event)
            if kind.is_type(event.type):  # type: ignore[attr-defined]
                return seen
        raise AssertionError(f"the connection ended after {[e.type for e in seen]}")


def talk(running: Serving, what: Callable[[Talking], Any]) -> Any:
    async def run() -> Any:
        async with Talking("127.0.0.1", running.wyoming, read_timeout=30) as client:
            return await what(client)

    return asyncio.run(run())


def recording(rate: int = 16000, channels: int = 1) -> list[Any]:
    """The clip as a client sends it."""
    wav = load_audio(CLIP, rate=rate)
    data = np.repeat(pcm16(wav, "x")[:, None], channels, axis=1).tobytes()
    how = {"rate": rate, "width": 2, "channels": channels}
    step = 2048 * channels
    chunks = [AudioChunk(**how, audio=data[i : i + step]) for i in range(0, len(data), step)]
    return [AudioStart(**how), *chunks, AudioStop()]


def sound(events: list[Event]) -> np.ndarray:
    assert AudioStart.from_event(events[0]) == AudioStart(RATE, 2, 1)
    chunks = [AudioChunk.from_event(e) for e in events if AudioChunk.is_type(e.type)]
    return np.frombuffer(b"".join(chunk.audio for chunk in chunks), "<i2")


def test_it_says_what_it_can_do(running: Serving) -> None:
    async def describe(client: Talking) -> tuple[Info, Pong]:
        await client.write_event(Event("nobody-knows-this"))
        await client.ask(Describe(), Ping("here"))
        info = (await client.until(Info))[-1]
        return Info.from_event(info), Pong.from_event((await client.until(Pong))[-1])

    info, pong = talk(running, describe)
    (asr,), (tts,) = info.asr, info.tts
    assert asr.installed and asr.models[0].languages == ["en", "zh"]
    assert asr.supports_transcript_streaming and tts.supports_synthesize_streaming
    assert tts.voices[0].name == "default" and pong.text == "here"


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (48000, 2)])
def test_speech_to_text(running: Serving, rate: int, channels: int) -> None:
    async def hear(client: Talking) -> list[Event]:
        await client.ask(Transcribe(), *recording(rate, channels))
        return await client.until(Transcript)

    events = talk(running, hear)
    said = Transcript.from_event(events[-1]).text
    pieces = [TranscriptChunk.from_event(e).text for e in events if TranscriptChunk.is_type(e.type)]
    wav = pcm16(load_audio(CLIP, rate=rate), "x").astype(np.float32) / 32768
    wanted = running.model.asr(wav, Options(), sampling_rate=rate).result().answer
    assert said == "".join(pieces) == wanted


@pytest.fixture
def read_aloud(running: Serving, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bytes]:
    """What the HTTP endpoint makes of a text. The protocol has no seed, so it is given here."""
    monkeypatch.setattr("mimo_edge.runtime.server.wyoming.new_seed", lambda given: 3)

    def ask(text: str) -> bytes:
        with running.http() as http:
            asked = {"input": text, "seed": 3, "response_format": "pcm"}
            return http.post("/v1/audio/speech", json=asked).content

    return ask


def test_text_to_speech(running: Serving, read_aloud: Callable[[str], bytes]) -> None:
    async def speak(client: Talking) -> list[Event]:
        await client.ask(Synthesize(TEXT, SynthesizeVoice("default")))
        return await client.until(AudioStop)

    assert sound(talk(running, speak)).tobytes() == read_aloud(TEXT)


def test_a_sentence_is_spoken_while_the_next_is_written(
    running: Serving, read_aloud: Callable[[str], bytes]
) -> None:
    async def speak(client: Talking) -> tuple[list[Event], list[Event]]:
        await client.ask(SynthesizeStart(), SynthesizeChunk(f"{TEXT} Please tu"))
        first = await client.until(AudioChunk)  # the second sentence is not whole yet
        await client.ask(SynthesizeChunk("rn the radio off."), Synthesize("All again."))
        await client.ask(SynthesizeStop())
        return first, await client.until(SynthesizeStopped)

    first, rest = talk(running, speak)
    assert [e.type for e in first] == ["audio-start", "audio-chunk"]
    assert [e.type for e in rest[-2:]] == ["audio-stop", "synthesize-stopped"]
    spoken = sound([*first, *rest]).tobytes()
    assert spoken == read_aloud(TEXT) + read_aloud("Please turn the radio off.")


def line(**head: Any) -> bytes:
    return json.dumps(head).encode() + b"\n"


PCM = {"rate": 16000, "width": 2, "channels": 1}


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\n",
        b"[]\n",
        b"[" * 60_000 + b"\n",
        b"x" * 200_000,
        line(type=5),
        line(type="describe", data=[1]),
        line(type="describe", data_length=1 << 40),
        line(type="audio-chunk", payload_length=-1),
        line(type="audio-chunk", payload_length=1 << 40),
        line(type="audio-chunk", data=PCM),
        line(type="audio-start", data={"rate": "fast"}),
        line(type="audio-start", data=PCM | {"width": 3}),
        line(type="audio-start", data=PCM) + line(type="audio-chunk", data=PCM | {"rate": 8000}),
        line(type="audio-start", data=PCM) + line(type="audio-stop"),
        line(type="audio-stop"),
        line(type="transcribe", data={"language": "klingon"})
        + line(type="audio-start", data=PCM)
        + line(type="audio-stop"),
        line(type="synthesize"),
        line(type="synthesize", data={"text": " "}),
        line(type="synthesize", data={"text": "a" * 5000}),
        line(type="synthesize", data={"text": "a", "voice": {"name": "nobody"}}),
        line(type="synthesize", data={"text": "a", "text_format": "ssml"}),
        line(type="synthesize-chunk", data={"text": "a"}),
        line(type="synthesize-stop"),
        line(type="synthesize-start") * 2,
        line(type="synthesize-start") + line(type="synthesize-chunk", data={"text": 5}),
    ],
)
def test_garbage_is_an_error_and_ends_its_connection(running: Serving, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", running.wyoming), timeout=30) as raw:
        raw.sendall(sent)
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    assert b'"type": "error"' in answer and b"has failed" not in answer
    assert talk(running, lambda client: client.ask(Describe())) is None
    running.idle()


def test_a_client_that_leaves_frees_its_slot(running: Serving, slow: Callable[[], None]) -> None:
    slow()
    before = running.metric("mimo_cancellations_total")

    async def leave(client: Talking) -> None:
        await client.ask(Synthesize(TEXT))
        await client.until(AudioChunk)
        assert running.model.scheduler.busy == 1

    talk(running, leave)
    running.idle()
    until(lambda: running.metric("mimo_cancellations_total") == before + 1)


def test_more_than_there_is_room_for(running: Serving, slow: Callable[[], None]) -> None:
    """4 slots, 2 that wait, 12 connections: the rest is told so, and none is lost."""
    slow()

    async def ask() -> str:
        async with Talking("127.0.0.1", running.wyoming, read_timeout=30) as client:
            await client.ask(Synthesize("Two."))
            while (event := await client.read_event()) is not None:
                if AudioStop.is_type(event.type):
                    return "spoken"
                if Error.is_type(event.type):
                    return str(event.data["text"])
        return "lost"

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(ask() for _ in range(20)))

    answers = asyncio.run(all_at_once())
    assert answers.count("spoken") >= 6 and "lost" not in answers
    assert sum("requests are open" in a for a in answers) >= 1
    assert sum("Too many connections" in a for a in answers) >= 1
    running.idle()


def test_sentences() -> None:
    sentences = Sentences()
    assert sentences.feed("It is 3.5 metres") == []
    assert sentences.feed(" long. Yes. It is") == ["It is 3.5 metres long."]
    assert sentences.feed(' so.") 你好，世界真的很大很好。再见') == [
        'Yes. It is so.")',
        "你好，世界真的很大很好。",
    ]
    assert sentences.finish() == "再见" and sentences.finish() == ""
    long = Sentences()
    cut = [*long.feed("word " * 1000), long.finish()]
    assert "".join(f"{c} " for c in cut) == "word " * 1000 and all(len(c) <= MOST for c in cut)
    assert [len(c) for c in Sentences().feed("x" * 1000)] == [MOST, MOST]


def test_the_flag(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(where: str) -> str:
        assert cli.main(["serve", str(bundle), "--port", "0", "--wyoming", where]) in (2, 3)
        return capsys.readouterr().err

    assert "not 'x'" in said("x") and "0 to 65535" in said("99999999")
    monkeypatch.delitem(sys.modules, "mimo_edge.runtime.server.wyoming")
    monkeypatch.setitem(sys.modules, "wyoming.asr", None)
    assert 'pip install "wyoming' in said("10300")

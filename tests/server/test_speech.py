"""Speech and voices through OpenAI's client, unchanged."""

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import openai
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

from tests.server.conftest import CLIP, Serving, serving

TEXT = "The red cup is on the table."


@pytest.fixture(scope="module")
def streamed(shared: Serving) -> np.ndarray:
    """What the Python API streams for TEXT and seed 3, as 16 bit."""
    how = shared.service.streaming
    generation = shared.model.tts(TEXT, options=Options(seed=3))
    events = [*generation.stream(**dataclasses.asdict(how))]
    return pcm16(np.concatenate([event.wav for event in events]), "x")


def test_a_stream_of_pcm_is_what_the_api_streams(
    client: openai.OpenAI, streamed: np.ndarray
) -> None:
    given = {"model": "nano", "voice": "alloy", "input": TEXT, "response_format": "pcm"}
    with client.audio.speech.with_streaming_response.create(
        **given, extra_body={"seed": 3}
    ) as response:
        assert response.headers["x-seed"] == "3"
        pieces = [*response.iter_bytes()]
    assert len(pieces) > 3, "it should come in pieces"
    assert (np.frombuffer(b"".join(pieces), "<i2") == streamed).all()


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "opus"])
def test_every_format_can_be_read(client: openai.OpenAI, streamed: np.ndarray, form: str) -> None:
    given = {"model": "nano", "voice": "alloy", "input": TEXT, "response_format": form}
    data = client.audio.speech.create(**given, extra_body={"seed": 3}).content
    wav = load_audio(data)
    if form in ("wav", "flac"):
        assert (pcm16(wav, "x") == streamed).all()
    else:  # encoders add some milliseconds, and lose what is not heard
        assert abs(len(wav) - len(streamed)) < 5000
    assert client.audio.transcriptions.create(model="nano", file=("x", data)).text == TEXT


def test_events_hold_the_same_sound(shared: Serving, streamed: np.ndarray) -> None:
    asked = {"input": TEXT, "seed": 3, "response_format": "pcm", "stream_format": "sse"}
    with shared.http() as http:
        response = http.post("/v1/audio/speech", json=asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line]
    data = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    assert (np.frombuffer(data, "<i2") == streamed).all()
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    done = events[-1]
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] > 10


def test_without_a_seed_there_is_a_new_one(client: openai.OpenAI) -> None:
    given = {"model": "nano", "voice": "alloy", "input": "Red.", "response_format": "pcm"}
    made = [client.audio.speech.with_raw_response.create(**given) for _ in range(2)]
    seeds = [int(response.headers["x-seed"]) for response in made]
    assert seeds[0] != seeds[1]
    again = client.audio.speech.create(**given, extra_body={"seed": seeds[0]})
    assert again.content == made[0].content


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"response_format": "aac"}, 400, "no encoder"),
        ({"speed": 2.0}, 400, "speed"),
        ({"voice": "nobody"}, 400, "There is no voice 'nobody'"),
        ({"input": " \n"}, 400, "blank"),
        ({"input": "a" * 4097}, 400, "4096"),
        ({"extra_body": {"temprature": 1}}, 400, "temprature"),
        ({"extra_body": {"temperature": -1}}, 400, "temperature"),
        ({"extra_body": {"natural": True}, "instructions": "happily"}, 400, "natural"),
    ],
)
def test_what_cannot_be_is_refused(
    client: openai.OpenAI, change: dict[str, object], status: int, word: str
) -> None:
    given = {"model": "nano", "voice": "alloy", "input": TEXT, **change}
    with pytest.raises(openai.APIStatusError) as refused:
        client.audio.speech.create(**given)
    assert refused.value.status_code == status
    assert isinstance(refused.value.body, dict) and word in refused.value.body["message"]


def test_a_voice_is_kept_used_and_deleted(nano: MimoAudio, tmp_path: Path) -> None:
    with serving(nano, voices=tmp_path) as running, running.http() as http:
        sample = {"audio_sample": ("me.flac", CLIP.read_bytes())}
        added = http.post("/v1/audio/voices", data={"name": "me"}, files=sample)
        assert added.status_code == 200 and added.json()["name"] == "me"
        again = http.post("/v1/audio/voices", data={"name": "me"}, files=sample)
        assert again.status_code == 409
        for name in ("../me", "", "alloy", "a" * 65, "me.wav", "\u0000"):
            bad = http.post("/v1/audio/voices", data={"name": name}, files=sample)
            assert bad.status_code == 400, name
        assert [p.name for p in tmp_path.iterdir()] == ["me.wav"]

        asked = {"input": TEXT, "voice": "me", "seed": 1, "response_format": "pcm"}
        plain = http.post("/v1/audio/speech", json=asked)
        assert plain.status_code == 400 and "instruction" in plain.json()["error"]["message"]
        limited = {**asked, "instructions": "happily", "max_patches": 12}
        with_voice = http.post("/v1/audio/speech", json=limited)
        without = http.post("/v1/audio/speech", json={**limited, "voice": "default"})
        assert with_voice.status_code == without.status_code == 200

    with serving(nano, voices=tmp_path) as running, running.http() as http:
        listed = http.get("/v1/audio/voices").json()["data"]
        assert [voice["id"] for voice in listed] == ["me"]
        wanted = load_audio(CLIP)
        assert len(load_audio(tmp_path / "me.wav")) == len(wanted)
        assert http.delete("/v1/audio/voices/me").json()["deleted"] is True
        assert http.delete("/v1/audio/voices/me").status_code == 404
        assert [*tmp_path.iterdir()] == []


def test_a_full_disk_refuses_a_voice_and_keeps_serving(
    nano: MimoAudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with serving(nano, voices=tmp_path) as running, running.http() as http:
        monkeypatch.setattr("os.fsync", full)
        sample = {"audio_sample": ("me.flac", CLIP.read_bytes())}
        refused = http.post("/v1/audio/voices", data={"name": "me"}, files=sample)
        assert refused.status_code == 507, refused.text
        assert refused.json()["error"]["code"] == "storage_full"
        assert [*tmp_path.iterdir()] == [] and running.service.voices.list() == []
        monkeypatch.undo()
        assert http.post("/v1/audio/voices", data={"name": "me"}, files=sample).status_code == 200


def test_long_recordings_are_no_voices(shared: Serving) -> None:
    file = io.BytesIO()
    import soundfile

    soundfile.write(file, np.zeros(24000 * 31), 24000, format="WAV")
    with shared.http() as http:
        sample = {"audio_sample": ("long.wav", file.getvalue())}
        refused = http.post("/v1/audio/voices", data={"name": "long"}, files=sample)
    assert refused.status_code == 400 and "30 s" in refused.json()["error"]["message"]

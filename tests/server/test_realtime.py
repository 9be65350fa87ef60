"""Spoken conversations by OpenAI's realtime events; every event that comes is held to its types."""

import base64
import dataclasses
from collections.abc import Callable

import numpy as np
import openai
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.resample import resample
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.telephone import LAWS

from tests.server.conftest import QUESTION, Serving, sound
from tests.server.realtime_client import BY_HAND, RATE, Talking


def test_a_turn_by_hand_is_what_the_api_says(shared: Serving, talking: Talking) -> None:
    how, pcm = shared.service.streaming, sound()
    wav = pcm.astype(np.float32) / 32768
    first = shared.model.dialogue(wav, system_prompt="Be kind.", options=Options(seed=5))
    events = [*first.stream(**dataclasses.asdict(how))]
    wanted = events[-1].result
    assert wanted is not None

    session = talking.session(instructions="Be kind.", **BY_HAND)
    assert session["audio"]["input"]["turn_detection"] is None
    talking.ask(pcm)
    done = talking.until("response.done")["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": wanted.answer}]
    assert (talking.audio() == pcm16(np.concatenate([e.wav for e in events]), "x")).all()
    order = [k for k in talking.kinds() if not k.endswith("delta")]
    assert order[2:] == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    second = shared.model.dialogue(wav, history=wanted.history, options=Options(seed=5)).result()
    talking.ask(pcm)
    said = talking.until("response.done")["response"]["output"][0]["content"][0]["transcript"]
    assert said == second.answer, "the second turn continues the first"


def test_the_server_hears_where_a_turn_ends(talking: Talking) -> None:
    transcription = {"audio": {"input": {"transcription": {"model": "nano"}}}}
    talking.session(**transcription)
    quiet = np.random.default_rng(0).integers(-30, 30, RATE).astype("<i2")
    talking.say(np.concatenate((quiet, sound(), quiet)))
    started = talking.until("input_audio_buffer.speech_started")
    stopped = talking.until("input_audio_buffer.speech_stopped")
    length = 1000 * len(sound()) / RATE
    assert 900 < started["audio_start_ms"] < 1000 + length / 2
    assert started["audio_start_ms"] < stopped["audio_end_ms"] <= 1100 + length
    assert talking.until("response.done")["response"]["status"] == "completed"
    kind = "conversation.item.input_audio_transcription.completed"
    heard = next((e for e in talking.seen if e["type"] == kind), None) or talking.until(kind)
    assert heard["item_id"] == started["item_id"] and len(heard["transcript"].split()) > 2
    assert len(talking.audio()) > RATE / 2


def test_speech_of_the_user_interrupts(shared: Serving, talking: Talking) -> None:
    talking.session()
    quiet = np.zeros(RATE, "<i2")
    talking.say(np.concatenate((quiet, sound(), quiet)))
    talking.until("response.created")
    talking.say(sound())
    done = talking.until("response.done")["response"]
    if done["status"] == "cancelled":  # nano may have said it all by then
        assert done["status_details"]["reason"] == "turn_detected"
    talking.say(quiet)
    assert talking.until("response.done")["response"]["status"] == "completed"


def test_cancel_and_truncate(shared: Serving, talking: Talking, slow: Callable[[], None]) -> None:
    talking.session(**BY_HAND)
    slow()
    talking.ask(sound())
    talking.until("response.output_audio.delta")
    assert shared.model.scheduler.busy == 1
    talking.send("response.create")
    error = next(e for e in iter(talking.next, None) if e["type"] == "error")
    assert error["error"]["code"] == "conversation_already_has_active_response"
    before = shared.metric("mimo_cancellations_total")
    talking.send("response.cancel")
    done = talking.until("response.done")["response"]
    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    item = done["output"][0]
    assert item["status"] == "incomplete"
    assert shared.metric("mimo_cancellations_total") == before + 1
    shared.idle()
    sent = len(talking.audio()) / RATE
    talking.send(
        "conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=100
    )
    assert talking.until("conversation.item.truncated")["audio_end_ms"] == 100
    talking.send("response.cancel")
    assert talking.next()["error"]["code"] == "response_cancel_not_active"
    talking.ask(sound())
    assert talking.until("response.done")["response"]["status"] == "completed"
    assert sent > 0


@pytest.mark.parametrize("law", ["pcmu", "pcma"])
def test_the_sound_of_telephones(shared: Serving, talking: Talking, law: str) -> None:
    form = {"type": f"audio/{law}"}
    talking.session(
        audio={"input": {"format": form, "turn_detection": None}, "output": {"format": form}}
    )
    codec = LAWS[form["type"]]
    sent = codec.encode(resample(load_audio(QUESTION), RATE, 8000))
    heard = resample(codec.decode(sent), 8000, RATE)
    wanted = shared.model.dialogue(heard, options=Options(seed=5))
    events = [*wanted.stream(**dataclasses.asdict(shared.service.streaming))]
    for start in range(0, len(sent), 777):
        audio = base64.b64encode(sent[start : start + 777]).decode()
        talking.send("input_audio_buffer.append", audio=audio)
    talking.send("input_audio_buffer.commit")
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["audio"]["output"]["format"] == form
    result = events[-1].result
    assert result is not None
    assert done["output"][0]["content"][0]["transcript"] == result.answer
    deltas = [e["delta"] for e in talking.seen if e["type"] == "response.output_audio.delta"]
    wav = np.concatenate([event.wav for event in events])
    assert b"".join(map(base64.b64decode, deltas)) == codec.encode(resample(wav, RATE, 8000))


def test_the_package_itself(shared: Serving, client: openai.OpenAI) -> None:
    """OpenAI's own connection object, with its own events."""
    with client.realtime.connect(model="nano") as connection:
        connection.session.update(session={"type": "realtime", **BY_HAND})  # type: ignore
        audio = base64.b64encode(sound().tobytes()).decode()
        connection.input_audio_buffer.append(audio=audio)
        connection.input_audio_buffer.commit()
        connection.response.create()
        kinds = []
        for event in connection:
            kinds.append(event.type)
            if event.type == "response.done":
                assert event.response.status == "completed"
                break
    assert "response.output_audio.delta" in kinds and "error" not in kinds

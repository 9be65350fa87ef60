"""Spoken conversations by OpenAI's realtime events; every event that comes is held to its types."""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.resample import resample
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.limits import Limits
from mimo_edge.runtime.server.realtime_conversation import cut_text
from mimo_edge.runtime.server.telephone import LAWS
from mimo_edge.runtime.tasks import MimoAudio
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.server.conftest import QUESTION, Serving, serving, until

EVENTS: TypeAdapter[RealtimeServerEvent] = TypeAdapter(RealtimeServerEvent)
Raw = dict[str, Any]
RATE = 24000


def sound() -> np.ndarray:
    """The question as 16 bit."""
    return pcm16(load_audio(QUESTION), "x")


class Talking:
    """A client that believes nothing."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.seen = socket, list[Raw]()

    def send(self, kind: str, **content: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **content}))

    def say(self, pcm: np.ndarray) -> None:
        for start in range(0, len(pcm), 4800):
            audio = base64.b64encode(pcm[start : start + 4800].tobytes()).decode()
            self.send("input_audio_buffer.append", audio=audio)

    def next(self) -> Raw:
        text = self.socket.recv(timeout=30)
        event = EVENTS.validate_json(text, strict=True)
        assert type(event).__name__ != "BaseModel"
        raw: Raw = json.loads(text)
        assert event.type == raw["type"] and raw["event_id"].startswith("event_")
        self.seen.append(raw)
        return raw

    def until(self, kind: str) -> Raw:
        """Read on to this event; an error is one only if it is waited for."""
        while (event := self.next())["type"] != kind:
            assert event["type"] != "error", event
        return event

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.seen]

    def audio(self) -> np.ndarray:
        deltas = [e["delta"] for e in self.seen if e["type"] == "response.output_audio.delta"]
        return np.frombuffer(b"".join(map(base64.b64decode, deltas)), "<i2")

    def session(self, **settings: Any) -> Raw:
        self.send("session.update", session={"type": "realtime", "seed": 5, **settings})
        session: Raw = self.until("session.updated")["session"]
        return session


@pytest.fixture
def talking(shared: Serving) -> Iterator[Talking]:
    with connect(f"ws://127.0.0.1:{shared.port}/v1/realtime?model=nano") as socket:
        talk = Talking(socket)
        assert talk.next()["type"] == "session.created"
        yield talk
    shared.idle()


BY_HAND = {"audio": {"input": {"turn_detection": None}}}


def test_a_turn_by_hand_is_what_the_api_says(shared: Serving, talking: Talking) -> None:
    how, pcm = shared.service.streaming, sound()
    wav = pcm.astype(np.float32) / 32768
    first = shared.model.dialogue(wav, system_prompt="Be kind.", options=Options(seed=5))
    events = [*first.stream(**dataclasses.asdict(how))]
    wanted = events[-1].result
    assert wanted is not None

    session = talking.session(instructions="Be kind.", **BY_HAND)
    assert session["audio"]["input"]["turn_detection"] is None
    talking.say(pcm)
    talking.send("input_audio_buffer.commit")
    talking.send("response.create")
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
    talking.say(pcm)
    talking.send("input_audio_buffer.commit")
    talking.send("response.create")
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
    talking.say(sound())
    talking.send("input_audio_buffer.commit")
    slow()
    talking.send("response.create")
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
    talking.say(sound())
    talking.send("input_audio_buffer.commit")
    talking.send("response.create")
    assert talking.until("response.done")["response"]["status"] == "completed"
    assert sent > 0


def test_text(shared: Serving, talking: Talking) -> None:
    question = "What is four plus five?"
    wanted = shared.model.chat(question, options=Options(seed=5)).result()
    talking.session(output_modalities=["text"])
    content = [{"type": "input_text", "text": question}]
    item = {"type": "message", "role": "user", "content": content}
    talking.send("conversation.item.create", item=item)
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": wanted.answer}]
    deltas = [e["delta"] for e in talking.seen if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == wanted.answer


QUESTION_TEXT = "What is four plus five?"


def typed(text: str) -> Raw:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content}


def read_aloud(shared: Serving, text: str, seed: int) -> np.ndarray:
    """A sentence as the Python API streams it."""
    generation = shared.model.tts(text, options=Options(seed=seed))
    how = dataclasses.asdict(shared.service.streaming)
    return pcm16(np.concatenate([e.wav for e in generation.stream(**how)]), "x")


def test_text_is_answered_with_speech(shared: Serving, talking: Talking) -> None:
    wanted = shared.model.chat(QUESTION_TEXT, options=Options(seed=5)).result()
    spoken = read_aloud(shared, wanted.answer, 5)
    talking.session()
    talking.send("conversation.item.create", item=typed(QUESTION_TEXT))
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": wanted.answer}]
    assert (talking.audio() == spoken).all()
    again = shared.model.chat("And six plus one?", history=wanted.history, options=Options(seed=5))
    talking.send("conversation.item.create", item=typed("And six plus one?"))
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == again.result().answer


def test_text_and_speech_at_once(shared: Serving, talking: Talking) -> None:
    """A question about a sound begins a conversation; later one of them is taken at a time."""
    wav = sound().astype(np.float32) / 32768
    wanted = shared.model.understand(wav, "What is said?", options=Options(seed=5, max_new=24))
    talking.session(output_modalities=["text"], max_output_tokens=24, **BY_HAND)
    for status in ("completed", "failed"):
        talking.say(sound())
        talking.send("input_audio_buffer.commit")
        talking.send("conversation.item.create", item=typed("What is said?"))
        talking.send("response.create")
        done = talking.until("response.done")["response"]
        assert (done["status"] == "failed") == (status == "failed"), done
        if status == "completed":
            assert done["output"][0]["content"][0]["text"] == wanted.result().answer
    assert "one of them at a time" in done["status_details"]["error"]["message"]


def test_what_was_not_read_aloud_yet_is_forgotten(
    shared: Serving, talking: Talking, slow: Callable[..., None]
) -> None:
    talking.session()
    talking.send("conversation.item.create", item=typed(QUESTION_TEXT))
    slow(0.02)
    talking.send("response.create")
    talking.until("response.output_audio.delta")
    talking.send("response.cancel")
    done = talking.until("response.done")["response"]
    assert done["status"] == "cancelled" and done["output"][0]["status"] == "incomplete"
    shared.idle()
    item_id = done["output"][0]["id"]
    talking.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=0)
    talking.until("conversation.item.truncated")
    talking.send("conversation.item.create", item=typed("Say two."))
    talking.send("response.create")
    assert talking.until("response.done")["response"]["status"] == "completed"


def test_an_answer_beside_the_conversation(shared: Serving, talking: Talking) -> None:
    """It has an input of its own, or a copy of what is there; the conversation never learns."""
    wanted = shared.model.chat(QUESTION_TEXT, options=Options(seed=5)).result()
    talking.session(output_modalities=["text"])
    talking.send("conversation.item.create", item={"id": "later", **typed("Say two.")})
    aside = {"conversation": "none", "input": [typed(QUESTION_TEXT)]}
    talking.send("response.create", response=aside)
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"][0]["text"] == wanted.answer
    assert done["conversation_id"] is None
    reference = [{"type": "item_reference", "id": "later"}]
    later = shared.model.chat("Say two.", options=Options(seed=5)).result().answer
    for asked in ({**aside, "input": reference}, {"conversation": "none"}, {}):
        talking.send("response.create", response=asked)
        done = talking.until("response.done")["response"]
        assert done["output"][0]["content"][0]["text"] == later
    assert talking.kinds().count("conversation.item.added") == 2, "the user's, and one answer"


def test_what_was_not_read_aloud_is_cut_from_the_history(shared: Serving) -> None:
    model = shared.model
    result = model.chat("What is four plus five?", options=Options(seed=5)).result()
    start = model.chat("What is four plus five?").request.prompt.shape[1] // 4
    whole = (start, len(result.answer), model.tokenizer, model.layout)
    assert (cut_text(result.history, *whole) == result.history).all()
    cut = cut_text(result.history, start, 1, model.tokenizer, model.layout)
    assert cut.shape[1] == 4 * (start + 2), "one token, and the end"
    assert (cut[:, -4:] == result.history[:, -4:]).all()
    assert (cut[:, :-4] == result.history[:, : cut.shape[1] - 4]).all()


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


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "nonsense",
        "[]",
        "[" * 100_000,
        "{}",
        '{"type": 5}',
        '{"type": "input_audio_buffer.append"}',
        '{"type": "input_audio_buffer.append", "audio": "!"}',
        '{"type": "input_audio_buffer.append", "audio": "AAAA"}',
        '{"type": "input_audio_buffer.commit"}',
        '{"type": "response.create", "response": 3}',
        '{"type": "response.create", "response": {"input": []}}',
        '{"type": "response.create", "response": {"conversation": "none", "input": 5}}',
        '{"type": "response.create", "response": {"conversation": "none", "input": [{}]}}',
        '{"type": "response.create", "response": {"conversation": "x"}}',
        '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "ogg"}}}}}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "system"}}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user"}}',
        '{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": 0}',
        '{"type": "conversation.item.delete", "item_id": "x"}',
        '{"type": "session.update", "session": {"output_modalities": ["video"]}}',
        '{"type": "session.update", "session": {"audio": {"output": {"voice": "nobody"}}}}',
        '{"type": "session.update", "session": {"tools": [{"type": "function"}]}}',
        '{"type": "session.update", "session": null}',
    ],
)
def test_garbage_is_an_error_and_the_session_goes_on(talking: Talking, sent: str) -> None:
    talking.socket.send(sent)
    error = talking.next()
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert talking.session()["type"] == "realtime"


def test_bytes_are_an_error(talking: Talking) -> None:
    talking.socket.send(b"\x00\xff")
    assert talking.next()["error"]["code"] == "invalid_json"


def test_nothing_to_answer_fails_alone(talking: Talking) -> None:
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["status"] == "failed" and "nothing to answer" in str(done["status_details"])


def test_a_client_that_leaves_frees_its_slot(shared: Serving, slow: Callable[[], None]) -> None:
    with connect(f"ws://127.0.0.1:{shared.port}/v1/realtime") as socket:
        talk = Talking(socket)
        talk.session(**BY_HAND)
        talk.say(sound())
        talk.send("input_audio_buffer.commit")
        slow()
        talk.send("response.create")
        talk.until("response.output_audio.delta")
        assert shared.model.scheduler.busy == 1
        socket.socket.close()
    shared.idle()


def ask(talk: Talking) -> None:
    talk.session(**BY_HAND)
    talk.say(sound())
    talk.send("input_audio_buffer.commit")
    talk.send("response.create")


def test_a_slow_reader_gets_it_all_and_holds_no_slot(shared: Serving, talking: Talking) -> None:
    ask(talking)
    talking.until("response.created")
    shared.idle()  # nothing was read meanwhile
    assert talking.until("response.done")["response"]["status"] == "completed"
    assert len(talking.audio()) > RATE / 2


def test_without_memory_an_answer_is_refused(
    shared: Serving, talking: Talking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimo_edge.runtime.server.service.free_memory", lambda: 1 << 20)
    ask(talking)
    done = talking.until("response.done")["response"]
    assert done["status_details"]["error"]["code"] == "not_ready"
    monkeypatch.undo()
    talking.send("response.create")
    assert talking.until("response.done")["response"]["status"] == "completed"


def test_as_many_sessions_as_there_may_be(nano: MimoAudio) -> None:
    with serving(nano, limits=Limits(sessions=2)) as running:
        url = f"ws://127.0.0.1:{running.port}/v1/realtime"
        with connect(url) as first, connect(url):
            with pytest.raises((InvalidStatus, ConnectionClosed)), connect(url) as third:
                third.recv(timeout=30)
            assert running.metric("mimo_realtime_sessions") == 2
            first.close()
            until(lambda: running.service.sessions == 1)
            with connect(url) as again:
                assert Talking(again).next()["type"] == "session.created"
        until(lambda: running.service.sessions == 0)


def test_a_drain_ends_the_answer_and_then_the_session(nano: MimoAudio) -> None:
    with serving(nano) as running, connect(f"ws://127.0.0.1:{running.port}/v1/realtime") as socket:
        talk = Talking(socket)
        ask(talk)
        talk.until("response.output_audio.delta")
        running.server.drain()
        assert talk.until("response.done")["response"]["status"] == "completed"
        with pytest.raises(ConnectionClosed):
            talk.next()


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


def test_keys_and_strangers(nano: MimoAudio) -> None:
    with serving(nano, key="right") as running:
        url = f"ws://127.0.0.1:{running.port}/v1/realtime"
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with (
                pytest.raises((InvalidStatus, ConnectionClosed)),
                connect(url, additional_headers=headers),
            ):
                pass
        with connect(url, additional_headers={"Authorization": "Bearer right"}) as socket:
            assert Talking(socket).next()["type"] == "session.created"
        offered = ["realtime", "openai-insecure-api-key.right"]
        with connect(url, subprotocols=offered) as socket:  # type: ignore[arg-type]
            assert socket.subprotocol == "realtime"
            assert Talking(socket).next()["type"] == "session.created"
        with (
            pytest.raises(InvalidStatus),
            connect(
                url,
                origin="http://evil.example",
                subprotocols=offered,  # type: ignore[arg-type]
            ),
        ):
            pass

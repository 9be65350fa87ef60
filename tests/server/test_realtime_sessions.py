"""Realtime sessions whose clients err, leave or are too many, and who is let in."""

from collections.abc import Callable

import pytest
from mimo_edge.runtime.server.limits import Limits
from mimo_edge.runtime.tasks import MimoAudio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.server.conftest import Serving, serving, sound, until
from tests.server.realtime_client import BY_HAND, RATE, Talking


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
        slow()
        talk.ask(sound())
        talk.until("response.output_audio.delta")
        assert shared.model.scheduler.busy == 1
        socket.socket.close()
    shared.idle()


def test_a_slow_reader_gets_it_all_and_holds_no_slot(shared: Serving, talking: Talking) -> None:
    talking.session(**BY_HAND)
    talking.ask(sound())
    talking.until("response.created")
    shared.idle()  # nothing was read meanwhile
    assert talking.until("response.done")["response"]["status"] == "completed"
    assert len(talking.audio()) > RATE / 2


def test_without_memory_an_answer_is_refused(
    shared: Serving, talking: Talking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimo_edge.runtime.server.service.free_memory", lambda: 1 << 20)
    talking.session(**BY_HAND)
    talking.ask(sound())
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
        talk.session(**BY_HAND)
        talk.ask(sound())
        talk.until("response.output_audio.delta")
        running.server.drain()
        assert talk.until("response.done")["response"]["status"] == "completed"
        with pytest.raises(ConnectionClosed):
            talk.next()


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

"""What a server must bear: many callers, those that leave, garbage, failures, and its own end."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.server.limits import Limits
from mimo_edge.runtime.server.service import Service, Streaming
from mimo_edge.runtime.server.serving import listen
from mimo_edge.runtime.server.voices import Voices
from mimo_edge.runtime.server.work import Work
from mimo_edge.runtime.tasks import MimoAudio

from tests.server.conftest import CLIP, SLOTS, Serving, serving, until

TEXTS = ("The red cup is on the table.", "Please turn the radio off.", "Two.", "Close the door.")


def asked(seed: int, **more: Any) -> dict[str, Any]:
    return {"input": TEXTS[seed % 4], "seed": seed, "response_format": "pcm", **more}


def test_sixteen_at_once_get_what_each_gets_alone(shared: Serving) -> None:
    def ask(seed: int) -> bytes | str:
        with shared.http() as http:
            if seed % 4 == 3:
                files = {"file": CLIP.read_bytes()}
                response = http.post("/v1/audio/transcriptions", files=files)
                return str(response.json()["text"])
            return http.post("/v1/audio/speech", json=asked(seed)).content

    alone = [ask(seed) for seed in range(16)]
    most = 0
    with ThreadPoolExecutor(16) as callers:
        waiting = [callers.submit(ask, seed) for seed in range(16)]
        while not all(future.done() for future in waiting):
            most = max(most, shared.model.scheduler.busy)
            time.sleep(0.001)
    assert [future.result() for future in waiting] == alone
    assert most == SLOTS
    shared.idle()


def test_a_client_that_leaves_frees_its_slot_within_a_patch(
    shared: Serving, slow: Callable[[], None]
) -> None:
    with shared.http() as http:
        http.post("/v1/audio/speech", json=asked(2))
        slow()
        before = shared.metric("mimo_cancellations_total")
        with http.stream("POST", "/v1/audio/speech", json=asked(0)) as response:
            next(response.iter_raw())
            assert shared.model.scheduler.busy == 1
        patches = shared.metric("mimo_patches_total")
        shared.idle()
    assert shared.metric("mimo_cancellations_total") == before + 1
    assert shared.metric("mimo_patches_total") == patches, "it was not made to its end"


def test_a_client_that_leaves_before_the_first_sound(
    shared: Serving, slow: Callable[[], None]
) -> None:
    with shared.http() as http:
        http.post("/v1/audio/speech", json=asked(2))
    slow()
    body = json.dumps(asked(0, response_format="mp3")).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1:{shared.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    before = shared.metric("mimo_cancellations_total")
    with socket.create_connection(("127.0.0.1", shared.port)) as raw:
        raw.sendall(head.encode() + body)
        until(lambda: shared.model.scheduler.busy == 1)
    shared.idle()
    until(lambda: shared.metric("mimo_cancellations_total") == before + 1)


def test_a_slow_reader_gets_it_all_and_holds_no_slot(shared: Serving) -> None:
    with shared.http() as http:
        wanted = http.post("/v1/audio/speech", json=asked(0)).content
        with http.stream("POST", "/v1/audio/speech", json=asked(0)) as response:
            pieces = response.iter_raw(1024)
            got = [next(pieces)]
            until(lambda: shared.model.scheduler.busy == 0)
            got += pieces
    assert b"".join(got) == wanted


def test_a_row_that_becomes_nan_fails_alone(
    shared: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared.http() as http, ThreadPoolExecutor(4) as callers:
        wanted = http.post("/v1/audio/speech", json=asked(0)).content
        scheduler = shared.model.scheduler
        states = scheduler._loop._states  # type: ignore[union-attr]
        extend, spoilt = states.extend, threading.Event()

        def extended(slot: int, ids: Any, codes: Any) -> Any:
            made = extend(slot, ids, codes)
            speech = (codes[:, 0, 0] != shared.model.layout.empty_codes[0]).any()
            if speech and not spoilt.is_set():  # the recording, not the texts
                spoilt.set()
                return np.full_like(made, np.nan)
            return made

        monkeypatch.setattr(states, "extend", extended)
        speech = [callers.submit(http.post, "/v1/audio/speech", json=asked(0)) for _ in range(3)]
        files = {"file": (Path(CLIP).parent / "listen-02.flac").read_bytes()}
        failed = http.post("/v1/audio/transcriptions", files=files)
        assert spoilt.is_set(), "the case should be what it says"
        assert failed.status_code == 500
        assert "NaN" in failed.json()["error"]["message"]
        assert [future.result().content for future in speech] == [wanted] * 3
    shared.idle()


POSTS = ("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/voices", "/v1/chat/completions")
GARBAGE: list[tuple[str, bytes]] = [
    ("application/json", b""),
    ("application/json", b"{"),
    ("application/json", b"[" * 100_000),
    ("application/json", b"\xff\xfe\x00"),
    ("application/json", b'{"input": null, "messages": 5}'),
    ("application/json", b'{"input": "\\ud800"}'),
    ("application/json", b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n"),
    ("multipart/form-data", b"--x--"),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n5"),
    ("text/plain", b"hello"),
    ("", os.urandom(1000)),
]


@pytest.mark.parametrize("path", POSTS)
def test_garbage_is_refused_with_a_reason(shared: Serving, path: str) -> None:
    with shared.http() as http:
        for kind, body in GARBAGE:
            response = http.post(path, content=body, headers={"content-type": kind})
            assert 400 <= response.status_code < 500, (kind, body[:40], response.text)
            assert response.json()["error"]["message"]
        assert http.get(path + "/../../etc/passwd").status_code in (404, 405)
        assert http.request("BREW", path).status_code == 405
    shared.idle()


def test_garbage_that_is_no_http(shared: Serving) -> None:
    for data in (b"\x16\x03\x01" + bytes(200), b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHo"):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as raw:
            raw.sendall(data)
    with shared.http() as http:
        assert http.get("/health").json()["status"] == "ready"


def test_what_is_too_large_or_too_long(nano: MimoAudio) -> None:
    limits = Limits(upload_bytes=100_000, audio_seconds=1.0, body_seconds=0.5)
    with serving(nano, limits=limits) as running, running.http() as http:

        def upload(data: bytes) -> httpx.Response:
            return http.post("/v1/audio/transcriptions", files={"file": data})

        assert upload(bytes(110_000)).status_code == 413

        def endless() -> Any:
            for _ in range(40):
                yield bytes(1 << 16)

        sent = http.post("/v1/chat/completions", content=endless())
        assert sent.status_code == 413 and sent.json()["error"]["code"] == "too_large"
        long = upload(CLIP.read_bytes())
        assert long.status_code == 400 and "limit of 1 s" in long.json()["error"]["message"]

        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as raw:
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
            raw.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_a_request_may_not_take_for_ever(nano: MimoAudio, slow: Callable[..., None]) -> None:
    limits, how = Limits(seconds=2), Streaming(chunk=1)
    with serving(nano, limits=limits, streaming=how) as running, running.http() as http:
        http.post("/v1/audio/speech", json=asked(2))
        heard = "mimo_time_to_first_audio_seconds_count"
        slow(2, when=lambda: running.metric(heard) > 1)
        with pytest.raises(httpx.RemoteProtocolError):  # sound has no other way to say it
            http.post("/v1/audio/speech", json=asked(0))
        running.idle()
        slow(2, when=lambda: running.metric(heard) > 2)
        events = http.post("/v1/audio/speech", json=asked(0, stream_format="sse")).text
        assert json.loads(events.strip().split("\n\n")[-1][6:])["error"]["code"] == "timeout"
        running.idle()
        slow(2)
        files = {"file": CLIP.read_bytes()}
        late = http.post("/v1/audio/transcriptions", files=files)  # nothing was sent yet
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        running.idle()


def test_without_memory_no_new_work_is_taken(
    shared: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimo_edge.runtime.server.service.free_memory", lambda: 1 << 20)
    with shared.http() as http:
        refused = http.post("/v1/audio/speech", json=asked(2))
        assert refused.status_code == 503 and "1 MiB of memory" in refused.text
        assert int(refused.headers["retry-after"]) >= 1
        assert http.get("/health").status_code == 503
        monkeypatch.undo()
        assert http.post("/v1/audio/speech", json=asked(2)).status_code == 200


def test_out_of_memory_in_one_request(shared: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise MemoryError

    with shared.http() as http:
        monkeypatch.setattr(shared.model, "tts", none)
        assert http.post("/v1/audio/speech", json=asked(2)).status_code == 503
        monkeypatch.undo()
        assert http.post("/v1/audio/speech", json=asked(2)).status_code == 200


def test_keys(nano: MimoAudio) -> None:
    with serving(nano, key="clé") as running, running.http() as http:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "clé".encode()}):
            for path in ("/v1/models", "/metrics", "/v1/audio/voices", "/openapi.json"):
                refused = http.get(path, headers=given)
                assert refused.status_code == 401, path
                assert refused.json()["error"]["code"] == "invalid_api_key"
            assert http.post("/v1/audio/speech", json=asked(2), headers=given).status_code == 401
        right = {"Authorization": "Bearer clé".encode()}
        assert http.get("/v1/models", headers=right).json()["data"][0]["id"] == "nano"
        assert http.get("/health").status_code == 200


def test_pages_of_other_sites_are_refused(shared: Serving) -> None:
    with shared.http() as http:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            assert http.get("/v1/models", headers=headers).status_code == 403
            assert http.post("/v1/audio/speech", json=asked(2), headers=headers).status_code == 403
        assert http.get("/v1/models", headers={"Origin": shared.url}).status_code == 200
        assert "access-control-allow-origin" not in http.get("/v1/models").headers


def test_others_are_not_served_without_a_key() -> None:
    with pytest.raises(InputError, match="--api-key"):
        listen("0.0.0.0", 0, key=None)
    with listen("0.0.0.0", 0, key="k") as sock:  # no piece waits for another to be acknowledged
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_is_taken_once(shared: Serving) -> None:
    with pytest.raises(InputError, match="in use by another program"):
        listen("127.0.0.1", shared.port, key=None)


def test_models_and_metrics(shared: Serving, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["nano"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    with shared.http() as http:
        http.post("/v1/audio/speech", json=asked(2))
        text = http.get("/metrics").text
    for name in (
        'mimo_requests_total{endpoint="/v1/audio/speech",status="200"}',
        "mimo_time_to_first_audio_seconds_count",
        "mimo_real_time_factor_sum",
        "mimo_underruns_total",
        "mimo_slots 4.0",
        "mimo_queue 0.0",
        "process_resident_memory_bytes",
    ):
        assert f"\n{name}" in text, name


def test_two_hundred_at_once(nano: MimoAudio) -> None:
    """Nobody is lost; who is let in has an answer in time, the others are told when to come."""
    limits = Limits(queue=12, seconds=120.0)
    many = httpx.Limits(max_connections=None)
    with (
        # chunks of one size, so that all hear the same to the last bit
        serving(nano, limits=limits, streaming=Streaming(chunk=2)) as running,
        httpx.Client(base_url=running.url, timeout=180, limits=many) as http,
        ThreadPoolExecutor(200) as callers,
    ):
        answers = [*callers.map(lambda n: http.post("/v1/audio/speech", json=asked(2)), range(200))]
        assert {answer.status_code for answer in answers} == {200, 429}
        taken = [a for a in answers if a.status_code == 200]
        assert len(taken) >= SLOTS + 12 and len({a.content for a in taken}) == 1
        for answer in answers:
            assert answer.elapsed.total_seconds() < limits.seconds
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["type"] == "rate_limit_error"
        running.idle()


def test_work_that_nobody_reads_ends_with_the_server(nano: MimoAudio) -> None:
    def endless(work: Work[int]) -> Iterator[int]:
        yield from count()

    async def forgotten() -> None:
        Work(service, endless)

    voices = Voices(nano, None, most=1, max_seconds=1.0)
    service = Service(nano, voices, name="nano", limits=Limits(), streaming=Streaming())
    asyncio.run(forgotten())
    closing = threading.Thread(target=service.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive() and not service.works


def test_slots_share_their_steps(nano: MimoAudio, bundle: Path) -> None:
    """8 callers, with 4 slots and with 1: the same answers in far fewer steps. Counted, not
    timed: docs/server.md has the times."""
    counts = []
    with MimoAudio.open(bundle, slots=1, threads=1) as alone:
        for model in (nano, alone):
            with (
                serving(model, streaming=Streaming(chunk=2)) as running,
                running.http() as http,
                ThreadPoolExecutor(8) as callers,
            ):
                http.post("/v1/audio/speech", json=asked(2))
                loop = model.scheduler._loop
                assert loop is not None
                step, steps = loop.step, [0]

                def counted(step: Any = step, steps: list[int] = steps) -> Any:
                    steps[0] += 1
                    time.sleep(0.03)  # longer than all 8 take to ask
                    return step()

                loop.step = counted  # type: ignore[method-assign]
                bodies = [asked(seed, max_patches=6) for seed in range(8)]
                post = partial(http.post, "/v1/audio/speech")
                made = [*callers.map(lambda body, post=post: post(json=body), bodies)]
                loop.step = step  # type: ignore[method-assign]
                counts.append((steps[0], [answer.content for answer in made]))
    (shared, heard), (single, heard_alone) = counts
    assert heard == heard_alone
    assert shared < single / 2

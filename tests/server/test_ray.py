"""Two replicas on Ray Serve, one of which is killed. `make clients` installs it and runs this."""

import base64
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.server.conftest import sound, until
from tests.server.realtime_client import BY_HAND
from tests.server.test_chat import SPEAKS, SPOKEN
from tests.server.test_stress import asked

KEY = {"Authorization": "Bearer right"}
URL, PORT = "http://127.0.0.1:8123", 8123
SESSIONS = [f"session-{n}" for n in range(8)]
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def replicas(bundle: Any) -> Iterator[Any]:
    os.environ["MIMO_EDGE_API_KEY"] = "right"
    import ray
    from mimo_edge.scripts import ray_serve
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    settings = ray_serve.Settings(
        bundle=bundle, threads=1, slots=2, queue=1, chunk=2, cpus=1, min_replicas=2, max_replicas=2
    )
    serve.run(ray_serve.app(settings))
    yield ray
    serve.shutdown()
    ray.shutdown()


def get(path: str, session: str) -> httpx.Response:
    return httpx.get(f"{URL}{path}", headers={**KEY, "X-Session-ID": session}, timeout=60)


def replica_of(session: str) -> str:
    """When the metrics of the replica that serves a session were made, to the microsecond: Ray
    starts processes at once, and the system knows of them to a hundredth of a second."""
    lines = get("/metrics", session).text.splitlines()
    return next(n.split()[1] for n in lines if n.startswith("mimo_patches_created "))


def talk(session: str) -> ClientConnection:
    headers = {**KEY, "X-Session-ID": session}
    socket = connect(f"ws://127.0.0.1:{PORT}/v1/realtime", additional_headers=headers)
    assert json.loads(socket.recv(timeout=30))["type"] == "session.created"
    return socket


def answered(socket: ClientConnection) -> str:
    audio = base64.b64encode(sound().tobytes()).decode()
    for event in (
        {"type": "session.update", "session": {"type": "realtime", "seed": 5, **BY_HAND}},
        {"type": "input_audio_buffer.append", "audio": audio},
        {"type": "input_audio_buffer.commit"},
        {"type": "response.create"},
    ):
        socket.send(json.dumps(event))
    while (event := json.loads(socket.recv(timeout=60)))["type"] != "response.done":
        assert event["type"] != "error", event
    return str(event["response"]["status"])


def test_keys_pass_through(replicas: Any) -> None:
    assert httpx.get(f"{URL}/v1/models").status_code == 401
    assert httpx.get(f"{URL}/health").json()["status"] == "ready"
    assert get("/", "x").headers["content-security-policy"]


def test_a_session_stays_with_its_replica(replicas: Any) -> None:
    """The spoken answer of a chat is known to the replica that gave it alone."""
    homes = {session: replica_of(session) for session in SESSIONS}
    assert len(set(homes.values())) == 2
    assert homes == {session: replica_of(session) for session in SESSIONS}
    headers = {**KEY, "X-Session-ID": SESSIONS[0]}

    def ask(messages: Any, **more: Any) -> httpx.Response:
        body = {"messages": messages, "max_tokens": 12, **SPEAKS}
        return httpx.post(
            f"{URL}/v1/chat/completions", json=body, headers={**headers, **more}, timeout=60
        )

    audio_id = ask(SPOKEN).json()["choices"][0]["message"]["audio"]["id"]
    again = [*SPOKEN, {"role": "assistant", "audio": {"id": audio_id}}, *SPOKEN]
    assert ask(again).status_code == 200
    other = next(s for s in SESSIONS if homes[s] != homes[SESSIONS[0]])
    assert "not known here" in ask(again, **{"X-Session-ID": other}).text


def test_who_finds_all_full_is_told_when_to_come_back(replicas: Any) -> None:
    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{URL}/v1/audio/speech", json=asked(0), headers=KEY, timeout=60)

    with ThreadPoolExecutor(24) as callers:
        answers = [*callers.map(ask, range(24))]
    assert {answer.status_code for answer in answers} == {200, 429}
    taken = {answer.content for answer in answers if answer.status_code == 200}
    assert len(taken) == 1, "every replica says the same"
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)


def test_a_replica_that_dies_loses_only_its_own_streams(replicas: Any) -> None:
    homes = {session: replica_of(session) for session in SESSIONS}
    sockets = {session: talk(session) for session in SESSIONS}
    from ray.util import list_named_actors

    names = [a["name"] for a in list_named_actors(all_namespaces=True)]
    doomed = next(name for name in names if name.startswith("SERVE_REPLICA"))
    replicas.kill(replicas.get_actor(doomed, namespace="serve"))
    lost = set()
    for session, socket in sockets.items():
        try:
            assert answered(socket) == "completed"
        except ConnectionClosed:
            lost.add(session)
    assert lost in [{s for s in SESSIONS if homes[s] == home} for home in set(homes.values())]
    for session in lost:  # at once, on the other one or on the one that takes its place
        with talk(session) as socket:
            assert answered(socket) == "completed"
    until(lambda: len({replica_of(session) for session in SESSIONS}) == 2)
    for socket in sockets.values():
        socket.close()

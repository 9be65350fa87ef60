"""A server on nano, in a thread of this process, on a free loopback port."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.generation.loop import Loop
from mimo_edge.runtime.server.app import make_app
from mimo_edge.runtime.server.limits import Limits
from mimo_edge.runtime.server.service import Service, Streaming
from mimo_edge.runtime.server.serving import Server, listen, open_port
from mimo_edge.runtime.server.voices import Voices
from mimo_edge.runtime.server.wyoming import WyomingServer
from mimo_edge.runtime.tasks import MimoAudio
from websockets.sync.client import connect

from tests.bundles import ROOT, exported_nano
from tests.server.realtime_client import Talking

CLIP = ROOT / "assets" / "utterances" / "listen-01.flac"
QUESTION = ROOT / "assets" / "utterances" / "ask-01.flac"
SLOTS = 4


def sound() -> np.ndarray:
    """The question as 16 bit."""
    return pcm16(load_audio(QUESTION), "x")


class Serving:
    """A server that runs, and ways to reach it."""

    def __init__(self, service: Service, server: Server, port: int, key: str | None) -> None:
        self.service, self.server, self.model = service, server, service.model
        self.url = f"http://127.0.0.1:{port}"
        self.port, self.key = port, key
        self.wyoming = 0  # its port, if there is one

    def client(self) -> openai.OpenAI:
        """OpenAI's own client, which must not try twice what failed."""
        key = self.key or "none"
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def metric(self, name: str) -> float:
        """A metric without labels."""
        lines = self.service.metrics.text().decode().splitlines()
        return next(float(n.split()[1]) for n in lines if n.startswith(f"{name} "))

    def idle(self) -> None:
        """Wait until nothing is left of any request."""
        scheduler = self.model.scheduler
        until(lambda: not (self.service.open or scheduler.busy or scheduler.waiting))


def until(true: Callable[[], object]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


@contextmanager
def serving(
    model: MimoAudio,
    *,
    limits: Limits | None = None,
    streaming: Streaming | None = None,
    key: str | None = None,
    voices: Path | None = None,
    drain_seconds: float = 30.0,
    wyoming: bool = False,
) -> Iterator[Serving]:
    limits, streaming = limits or Limits(), streaming or Streaming()
    kept = Voices(model, voices, most=limits.voices, max_seconds=limits.voice_seconds)
    service = Service(model, kept, name="nano", limits=limits, streaming=streaming)
    sock = listen("127.0.0.1", 0, key=key)
    other = open_port("127.0.0.1", 0)
    beside = WyomingServer(service, other) if wyoming else None
    app = make_app(service, key=key)
    server = Server(service, app, drain_seconds=drain_seconds, beside=beside)
    thread = threading.Thread(target=server.run_on, args=(sock,))
    thread.start()
    try:
        until(lambda: server.started and service.why_not() is None)
        running = Serving(service, server, sock.getsockname()[1], key)
        running.wyoming = other.getsockname()[1]
        yield running
    finally:
        server.drain()
        thread.join(60)
        other.close()
        assert not thread.is_alive(), _stacks()


def _stacks() -> str:
    """Where each thread is, for a server that does not end."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


@pytest.fixture(scope="session")
def bundle() -> Path:
    return exported_nano()


@pytest.fixture(scope="session")
def nano(bundle: Path) -> Iterator[MimoAudio]:
    with MimoAudio.open(bundle, slots=SLOTS, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def shared(nano: MimoAudio) -> Iterator[Serving]:
    """One server for all tests that leave it as it was. Chunks do not depend on its speed."""
    with serving(nano, streaming=Streaming(chunk=2)) as running:
        yield running


@pytest.fixture
def client(shared: Serving) -> Iterator[openai.OpenAI]:
    with shared.client() as opened:
        yield opened


@pytest.fixture
def slow(nano: MimoAudio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it to make every step take its time, so that a test can act in the middle; or those
    for which `when` is true."""

    step = Loop.step

    def begin(seconds: float = 0.05, when: Callable[[], bool] = lambda: True) -> None:
        def slowly(loop: Loop) -> object:
            if nano.scheduler.busy:
                time.sleep(seconds if when() else 0.02)
            return step(loop)

        monkeypatch.setattr(Loop, "step", slowly)

    return begin


@pytest.fixture
def talking(shared: Serving) -> Iterator[Talking]:
    """A realtime session, just created."""
    with connect(f"ws://127.0.0.1:{shared.port}/v1/realtime?model=nano") as socket:
        talk = Talking(socket)
        assert talk.next()["type"] == "session.created"
        yield talk
    shared.idle()

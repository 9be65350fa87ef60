"""The command itself, as a process: signals, kills, a port that is taken."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import CLIP, until
from tests.server.test_stress import asked


@contextmanager
def served(bundle: Path, *words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`mimo-edge serve`, and its address. It is ready."""
    command = [sys.executable, "-m", "mimo_edge", "serve", bundle, "--threads", 1, "--slots", 1]
    command += ["--chunk", 2, *words]
    with subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            threading.Thread(target=process.stderr.read, daemon=True).start()
            until(lambda: httpx.get(f"{url}/health").status_code == 200)
            yield process, url
        finally:
            process.kill()


def test_sigterm_ends_what_was_begun(bundle: Path) -> None:
    """One stream is open, others wait, one comes too late; exit code 0."""
    with (
        served(bundle, "--port", 0) as (process, url),
        httpx.Client(base_url=url, timeout=30) as http,
        ThreadPoolExecutor(8) as callers,
    ):
        wanted = http.post("/v1/audio/speech", json=asked(0)).content
        open_ = [callers.submit(http.post, "/v1/audio/speech", json=asked(0)) for _ in range(8)]
        until(lambda: "mimo_open_requests 8.0" in http.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        until(lambda: http.get("/health").status_code == 503)
        late = http.post("/v1/audio/speech", json=asked(2))
        assert late.status_code == 503 and "shutting down" in late.text
        assert [future.result().content for future in open_] == [wanted] * 8
        assert process.wait(30) == 0


def test_killed_in_the_middle_and_started_again(bundle: Path, tmp_path: Path) -> None:
    """Who listened sees that it broke off; the port is free, and the voices are there. A second
    server on the port is refused while the first runs."""
    voices = tmp_path / "voices"
    with served(bundle, "--port", 0, "--voices", voices) as (process, url):
        port = url.rpartition(":")[2]
        sample = {"audio_sample": CLIP.read_bytes()}
        assert httpx.post(f"{url}/v1/audio/voices", data={"name": "me"}, files=sample).is_success
        second = [sys.executable, "-m", "mimo_edge", "serve", str(bundle), "--port", port]
        refused = subprocess.run(second, capture_output=True, text=True)
        assert refused.returncode == 2 and "in use by another program" in refused.stderr
        with (
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{url}/v1/audio/speech", json=asked(0), timeout=30) as response,
        ):
            for _ in response.iter_raw():
                process.kill()
        assert process.wait(30) == -signal.SIGKILL
    with served(bundle, "--port", port, "--voices", voices) as (_, url):
        kept = httpx.get(f"{url}/v1/audio/voices").json()["data"]
        assert [voice["id"] for voice in kept] == ["me"]
        assert httpx.post(f"{url}/v1/audio/speech", json=asked(2), timeout=30).is_success

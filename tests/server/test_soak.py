"""Mixed calls for a long time: memory stays flat, no slot, place or file is leaked.

pytest -m soak -s                      # 20 minutes
SOAK_SECONDS=300 pytest -m soak -s
"""

import base64
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from tests.server.conftest import CLIP, QUESTION, sound, until
from tests.server.test_processes import served
from tests.server.test_stress import GARBAGE, POSTS, TEXTS

CALLERS, SLOTS, QUEUE = 8, 4, 3
GROWTH = 48 << 20  # bytes, from the second quarter of the time to the last


class Caller:
    """Does one thing after the other, and knows what may come of it."""

    def __init__(self, url: str, seed: int) -> None:
        self._url, self._random = url, random.Random(seed)
        self._http = httpx.Client(base_url=url, timeout=120)
        self._seed = seed
        self._kinds: tuple[Callable[[], int], ...] = (
            *(self.speech, self.transcription, self.written, self.spoken, self.realtime),
            *(self.voice, self.garbage, self.leaves, self.read_aloud),
        )

    def one(self) -> tuple[str, int]:
        """A call: its name and its status; 0 is one that was left."""
        kind = self._random.choice(self._kinds)
        status = kind()
        allowed = (400, 404, 405, 422, 429) if kind == self.garbage else (0, 200, 429)
        assert status in allowed, (kind.__name__, status)
        return kind.__name__, status

    def _text(self) -> str:
        return self._random.choice(TEXTS)

    def _post(self, path: str, **how: Any) -> int:
        return self._http.post(path, **how).status_code

    def speech(self) -> int:
        form = self._random.choice(("mp3", "opus", "flac", "wav", "pcm"))
        stream = self._random.choice(("audio", "sse"))
        asked = {"input": self._text(), "response_format": form, "stream_format": stream}
        return self._post("/v1/audio/speech", json=asked)

    def transcription(self) -> int:
        form = self._random.choice(("json", "text", "verbose_json", "srt", "vtt"))
        file = self._random.choice((CLIP, QUESTION)).read_bytes()
        return self._post(
            "/v1/audio/transcriptions", files={"file": file}, data={"response_format": form}
        )

    def _chat(self, content: Any, **more: Any) -> int:
        messages = [{"role": "user", "content": content}]
        stream = self._random.random() < 0.5
        return self._post(
            "/v1/chat/completions", json={"messages": messages, "stream": stream, **more}
        )

    def written(self) -> int:
        return self._chat(self._text())

    def read_aloud(self) -> int:
        audio = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "mp3"}}
        return self._chat(self._text(), **audio)

    def spoken(self) -> int:
        data = base64.b64encode(QUESTION.read_bytes()).decode()
        audio = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "flac"}}
        return self._chat([{"type": "input_audio", "input_audio": {"data": data}}], **audio)

    def voice(self) -> int:
        name = f"voice-{self._seed}"
        sample = {"audio_sample": CLIP.read_bytes()}
        made = self._http.post("/v1/audio/voices", data={"name": name}, files=sample)
        return made.status_code if made.status_code == 429 else self._delete(name)

    def _delete(self, name: str) -> int:
        return self._http.delete(f"/v1/audio/voices/{name}").status_code

    def garbage(self) -> int:
        kind, body = self._random.choice(GARBAGE)
        headers = {"content-type": kind}
        return self._post(self._random.choice(POSTS), content=body, headers=headers)

    def leaves(self) -> int:
        asked = {"input": self._text(), "response_format": "pcm"}
        with self._http.stream("POST", "/v1/audio/speech", json=asked) as response:
            if response.status_code == 200:
                next(response.iter_raw())
                return 0
            return response.status_code

    def realtime(self) -> int:
        """Some turns; now and then it is interrupted, or the line is cut."""
        by_hand = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        with connect(self._url.replace("http", "ws") + "/v1/realtime", max_size=None) as socket:

            def send(kind: str, **content: Any) -> None:
                socket.send(json.dumps({"type": kind, **content}))

            def wait(kind: str) -> Any:
                while (event := json.loads(socket.recv(timeout=120)))["type"] != kind:
                    assert event["type"] != "error", event
                return event

            send("session.update", session=by_hand)
            for _ in range(self._random.randint(1, 3)):
                audio = base64.b64encode(np.asarray(sound()).tobytes()).decode()
                send("input_audio_buffer.append", audio=audio)
                send("input_audio_buffer.commit")
                send("response.create")
                wait("response.created")
                chance = self._random.random()
                if chance < 0.1:
                    socket.socket.close()
                    return 0
                if chance < 0.3:
                    send("response.cancel")
                response = wait("response.done")["response"]
                if response["status"] == "failed":
                    assert response["status_details"]["error"]["code"] == "busy", response
                    return 429
        return 200


@pytest.mark.soak
def test_nothing_grows(bundle: Path, tmp_path: Path) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "1200"))
    words = ("--slots", SLOTS, "--queue", QUEUE, "--voices", tmp_path / "voices")
    calls: Counter[tuple[str, int]] = Counter()
    seen: list[dict[str, float]] = []
    with served(bundle, "--port", 0, *words) as (process, url):

        def measured() -> dict[str, float]:
            lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
            pairs = (line.rsplit(" ", 1) for line in lines if line[0] != "#")
            return {name: float(value) for name, value in pairs}

        end = time.monotonic() + seconds

        def call(seed: int) -> None:
            caller = Caller(url, seed)
            while time.monotonic() < end:
                name, status = caller.one()
                calls[name, status] += 1
                if status == 429:
                    time.sleep(0.5)

        with ThreadPoolExecutor(CALLERS) as callers:
            running = [callers.submit(call, seed) for seed in range(CALLERS)]
            while time.monotonic() < end and not any(future.done() for future in running):
                time.sleep(min(15.0, seconds / 40))
                seen.append(measured())
                resident = seen[-1]["process_resident_memory_bytes"] / (1 << 20)
                print(f"{end - time.monotonic():6.0f} s left, {resident:.0f} MiB", flush=True)
            for future in running:
                future.result()
        until(lambda: measured()["mimo_open_requests"] == 0)
        last = measured()
        assert process.poll() is None
    print(*sorted(calls.items()), sep="\n")
    speech, patches = last["mimo_audio_seconds_total"], last["mimo_patches_total"]
    print(f"{sum(calls.values())} calls, {speech:.0f} s of speech, {patches:.0f} patches")
    for name in ("mimo_slots_busy", "mimo_queue", "mimo_realtime_sessions"):
        assert last[name] == 0, name
    quarter = len(seen) // 4
    for name, most in (("process_resident_memory_bytes", GROWTH), ("process_open_fds", 16)):
        early, late = (
            float(np.median([s[name] for s in part]))
            for part in (seen[quarter : 2 * quarter], seen[-quarter:])
        )
        print(f"{name}: {early:.0f}, at the end {late:.0f}")
        assert late - early < most, name
    assert {kind for kind, _ in calls} >= {"speech", "realtime", "leaves", "garbage"}

"""A client of realtime sessions that holds every event to OpenAI's types."""

import base64
import json
from typing import Any

import numpy as np
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.sync.client import ClientConnection

EVENTS: TypeAdapter[RealtimeServerEvent] = TypeAdapter(RealtimeServerEvent)
Raw = dict[str, Any]
RATE = 24000
BY_HAND = {"audio": {"input": {"turn_detection": None}}}  # the client says where a turn ends


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

    def ask(self, pcm: np.ndarray) -> None:
        """Say it in a session BY_HAND, and want it answered."""
        self.say(pcm)
        self.send("input_audio_buffer.commit")
        self.send("response.create")

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

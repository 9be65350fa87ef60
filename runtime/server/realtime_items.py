"""What a realtime client sends, read and checked."""

import json
from typing import Any

from mimo_edge.runtime.server.audio_in import decoded
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.limits import check_text
from mimo_edge.runtime.server.realtime_config import Session
from mimo_edge.runtime.server.realtime_conversation import Said
from mimo_edge.runtime.server.realtime_input import InputBuffer
from mimo_edge.runtime.server.service import Service

Raw = dict[str, Any]


def said_in(service: Service, item_id: str, part: Raw) -> Said:
    """The one part of a user's item. Raises RequestError."""
    if part.get("type") == "input_text":
        text = text_of(part, "text")
        return Said(item_id, check_text(text, service.limits.prompt, "text"))
    if part.get("type") == "input_audio":
        by_hand = Session.parsed({"audio": {"input": {"turn_detection": None}}})
        rate = service.model.sampling_rate
        buffer = InputBuffer(by_hand, rate, service.limits.audio_seconds)
        buffer.append(decoded(text_of(part, "audio"), "audio"))
        return Said(item_id, wav=buffer.take())
    raise RequestError(
        "A part is input_text or input_audio (pcm16 at 24 kHz).", param="item.content"
    )


def parsed(text: str | None) -> Raw:
    """An event of a client. Raises RequestError."""
    if text is None:
        raise RequestError("Events are JSON in text frames.", code="invalid_json")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"This is no JSON: {error}.", code="invalid_json") from None
    if not isinstance(event, dict):
        raise RequestError("An event is an object with a type.", code="invalid_json")
    return event


def text_of(event: Raw, name: str) -> str:
    """A field that must be a string. Raises RequestError."""
    value = event.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string.", param=name)
    return value

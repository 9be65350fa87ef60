"""What a realtime client sends, read and checked."""

import json
from typing import Any

from mimo_edge.runtime.server.audio_in import decoded
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.limits import check_text
from mimo_edge.runtime.server.realtime_config import Session
from mimo_edge.runtime.server.realtime_conversation import Conversation, Said
from mimo_edge.runtime.server.realtime_input import InputBuffer
from mimo_edge.runtime.server.realtime_response import new_id
from mimo_edge.runtime.server.service import Service

Raw = dict[str, Any]
_MOST = 64  # items of an answer's own input


def said_in(service: Service, session: Session, item: Raw) -> Said:
    """An item of the user: a message of one part. Raises RequestError."""
    if item.get("type") != "message":
        raise RequestError("An item must be a message.", param="item")
    if item.get("role") != "user":
        raise RequestError(
            "Items of the user can be made; what the assistant is to be told belongs in the "
            "instructions.",
            param="item.role",
        )
    item_id = item.get("id") or new_id("item")
    if not isinstance(item_id, str):
        raise RequestError("item.id must be a string.", param="item.id")
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    if len(parts) != 1 or not isinstance(parts[0], dict):
        raise RequestError("item.content must be one part.", param="item.content")
    return _said(service, session, item_id, parts[0])


def _said(service: Service, session: Session, item_id: str, part: Raw) -> Said:
    if part.get("type") == "input_text":
        text = text_of(part, "text")
        return Said(item_id, check_text(text, service.limits.prompt, "text"))
    if part.get("type") == "input_audio":
        by_hand = session.updated({"audio": {"input": {"turn_detection": None}}})
        rate = service.model.sampling_rate
        buffer = InputBuffer(by_hand, rate, service.limits.audio_seconds)
        buffer.append(decoded(text_of(part, "audio"), "audio"))
        return Said(item_id, wav=buffer.take())
    raise RequestError(
        "A part is input_text, or input_audio in the format of the session.", param="item.content"
    )


def asked_in(
    service: Service, session: Session, conversation: Conversation, items: object
) -> list[Said]:
    """The input of an answer: items, or the names of some that wait. Raises RequestError."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RequestError("input must be a list of items.", param="input")
    if len(items) > _MOST:
        raise RequestError(f"input may have {_MOST} items.", param="input")
    return [
        conversation.find(text_of(item, "id"))
        if item.get("type") == "item_reference"
        else said_in(service, session, item)
        for item in items
    ]


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

"""Events of the Wyoming protocol, read with a bound on everything that a client may name.

The package's own reader takes any length. Its types are used for what is sent.
"""

import asyncio
import json
from typing import Any, TypeVar

from mimo_edge.runtime.server.errors import RequestError
from wyoming.event import Event

LINE = 1 << 16  # bytes of an event's first line, and of the data after it
PAYLOAD = 1 << 20  # bytes of sound in one event
T = TypeVar("T")


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """The next event, or None where the client has left. The reader's own limit is LINE; raises
    RequestError for what is no event."""
    try:
        line = await reader.readline()
        if not line:
            return None
        head = _object(line)
        kind, data = head.get("type"), head.get("data") or {}
        if not isinstance(kind, str) or not isinstance(data, dict):
            raise RequestError("An event has a type, and data that is an object.")
        if length := _length(head, "data_length", LINE):
            data = data | _object(await reader.readexactly(length))
        length = _length(head, "payload_length", PAYLOAD)
        payload = await reader.readexactly(length) if length else None
        return Event(kind, data, payload)
    except asyncio.IncompleteReadError:
        return None
    except ValueError:  # from readline
        raise RequestError(f"The first line of an event has {LINE} bytes at most.") from None


def field(event: Event, name: str, kind: type[T], default: T | None = None) -> T:
    """A field of an event. Raises RequestError if it is of another kind, or not there and there is
    no default."""
    value: object = event.data.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RequestError(f"{name} of {event.type[:64]} must be {kind.__name__}.", param=name)
    return value


def _object(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"This is no JSON: {error}.") from None
    if not isinstance(said, dict):
        raise RequestError("This is no JSON object.")
    return said


def _length(head: dict[str, Any], name: str, most: int) -> int:
    value = head.get(name) or 0
    if not isinstance(value, int) or not 0 <= value <= most:
        raise RequestError(f"{name} must be 0 to {most}.")
    return value

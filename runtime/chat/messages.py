"""The messages of a conversation, in whatever form a program gives them."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.conversation import Message

Messages = Iterable[Message | Mapping[str, Any]]
_OWN_KEYS = {"role", "text", "audio"}
_SENT_KEYS = {"role", "content"}  # as chat APIs send them
# what the turns of a conversation are made of: task -> role -> fields
_SAID: dict[str, dict[str, tuple[str, ...]]] = {
    "dialogue": {"user": ("audio",), "assistant": ("text", "audio")},
    "speech-to-text": {"user": ("audio",), "assistant": ("text",)},
    "chat": {"user": ("text",), "assistant": ("text",)},
}


def is_conversation(given: object) -> TypeGuard[Messages]:
    """Whether it is messages, a list of them or a generator, and not one recording."""
    if isinstance(given, str | Path | bytes | bytearray | memoryview | np.ndarray):
        return False
    return isinstance(given, Iterable) and not hasattr(given, "read")


def check_used(task: str, messages: Iterable[Message]) -> None:
    """Raises InputError that names the first message with what the task has no use for."""
    for index, message in enumerate(messages):
        fields = _SAID[task].get(message.role, ("text", "audio"))
        for name in ("text", "audio"):
            if name not in fields and getattr(message, name) is not None:
                raise InputError(
                    f"turn {index} ({message.role}): {task} does not use its {name}; take it "
                    f"out, or give it as {fields[0]}"
                )


def as_messages(messages: object) -> list[Message]:
    """The messages of a conversation from any iterable of `Message` or of mappings.

    A mapping has "role" and "text" or "audio", or, as chat APIs send it, "role" and "content":
    text, or a list of parts of type "text" and "input_audio". Raises InputError that names the
    message.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise InputError(
            f"messages must be a list of messages, not {type(messages).__name__}; put a single one "
            "into a list"
        )
    return [_message(message, index) for index, message in enumerate(messages)]


def _message(message: object, index: int) -> Message:
    if isinstance(message, Mapping):
        keys = set(message)
        if keys == _SENT_KEYS:
            message = _sent(message["role"], message["content"], index)
        elif "role" in keys <= _OWN_KEYS:
            message = Message(message["role"], message.get("text"), message.get("audio"))
        else:
            raise InputError(
                f"message {index} has the keys {sorted(map(str, keys))}; give role, and text or "
                "audio or content, nothing else"
            )
    if not isinstance(message, Message):
        raise InputError(f"message {index} must be a Message, not {type(message).__name__}")
    if not isinstance(message.role, str):
        raise InputError(f"message {index}: role must be text, not {message.role!r}")
    if not isinstance(message.text, str | None):
        raise InputError(f"message {index}: text must be text, not {message.text!r}")
    return message


def _sent(role: object, content: object, index: int) -> Message:
    """A message as chat APIs send it."""
    if role == "system":
        raise InputError(
            f"message {index} is of the system: give its text as system_prompt instead"
        )
    if isinstance(content, str):
        return Message(role, content)  # type: ignore[arg-type]
    texts: list[str] = []
    sounds: list[bytes] = []
    try:
        for part in content:  # type: ignore[attr-defined]
            if part["type"] == "text":
                texts.append(str(part["text"]))
            elif part["type"] == "input_audio":
                sounds.append(base64.b64decode(part["input_audio"]["data"], validate=True))
            else:
                raise ValueError(f"its type {part['type']!r} is not known")
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise InputError(
            f"message {index}: content must be text, or parts of type text and input_audio "
            f"({error})"
        ) from error
    if len(texts) > 1 or len(sounds) > 1:
        raise InputError(f"message {index}: give one text and one audio at most")
    return Message(
        role,  # type: ignore[arg-type]
        texts[0] if texts else None,
        sounds[0] if sounds else None,
    )

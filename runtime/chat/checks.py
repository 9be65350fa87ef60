"""What a program may give in place of what a task needs, and the sentence for what it may not.

Numbers of any kind are plain numbers afterwards, messages of any kind are `Message`.
"""

import base64
import binascii
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.conversation import Message
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid

SEEDS = 1 << 128
_OWN_KEYS = {"role", "text", "audio"}
_SENT_KEYS = {"role", "content"}  # as chat APIs send them


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number of any kind, numpy's included, as int. Raises InputError that names it."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limits = f"{least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number, {limits}, not {value!r}")
    return number


def checked_limits(max_new: object, min_new: object, seed: object) -> tuple[int | None, int, int]:
    """The limits of an answer as plain numbers. Raises InputError for what no answer can have."""
    return (
        None if max_new is None else whole_number("max_new", max_new, 1),
        whole_number("min_new", min_new, 0),
        whole_number("seed", seed, 0, SEEDS - 1),
    )


def check_options(options: Any) -> None:
    """Check the fields of a frozen `Options` and make its numbers plain; for its __post_init__."""
    for name in ("text", "audio"):
        value = getattr(options, name)
        if not isinstance(value, Sampling | None):
            raise InputError(f"options.{name} must be a Sampling or None, not {value!r}")
    if not isinstance(options.template, str | None):
        raise InputError(f"options.template must be text or None, not {options.template!r}")
    limits = checked_limits(options.max_new, options.min_new, options.seed)
    for name, number in zip(("max_new", "min_new", "seed"), limits, strict=True):
        object.__setattr__(options, name, number)


def as_grid(history: object) -> Grid | None:
    """A history: `Result.history`, or the `Result` that has it. Raises InputError for another."""
    found = getattr(history, "history", history)
    if found is None or isinstance(found, np.ndarray):
        return found
    raise InputError(
        f"history must be a Result or its history, not {type(history).__name__}; read a file with "
        "read_history"
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

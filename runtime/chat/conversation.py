"""Conversations on disk: a file of messages, and the history that a run leaves for the next.

A conversation file is JSON:

    {"system_prompt": "You are kind.", "voice": "voice.wav",
     "messages": [{"role": "user", "audio": "question.wav"},
                  {"role": "assistant", "text": "It is sunny.", "audio": "answer.wav"},
                  {"role": "user", "audio": "next.wav"}]}

`system_prompt` and `voice` may be left out; paths are relative to the file.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.arrays import DAMAGED, read_arrays
from mimo_edge.runtime.bundle.errors import (
    DISK_FULL,
    MALFORMED,
    InputError,
    ResourceError,
    unreadable,
)
from mimo_edge.runtime.bundle.files import PRIVATE, read_text, write_bytes
from mimo_edge.runtime.chat.segments import Grid

# a path, the bytes of a file, wav [N], or codes [K, T]
Audio = str | Path | bytes | Floats | Ints

_KEYS = ("role", "text", "audio")
_FILE_KEYS = ("messages", "system_prompt", "voice")
_LARGEST_HISTORY = 1 << 27  # bytes; the longest context of the 7B has 300,000 numbers


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: text, audio, or, for a spoken answer, both."""

    role: str  # "user" or "assistant"
    text: str | None = None
    audio: Audio | None = None
    sampling_rate: int | None = None  # Hz, of audio that is an array; None: the model's own


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    system_prompt: str | None = None
    voice: Path | None = None


def read_conversation(path: str | Path) -> Conversation:
    """Raises InputError that names the file and the message."""
    path = Path(path)
    try:
        raw = json.loads(read_text(path))
        if not isinstance(raw, dict) or not isinstance(raw["messages"], list):
            raise TypeError
    except OSError as error:
        raise InputError(unreadable(path, error, "Check the path.")) from error
    except MALFORMED as error:
        raise InputError(
            f'{path} is no conversation file: it must be JSON with a list "messages" of '
            '{"role", "text" or "audio"}.'
        ) from error
    unknown = [key for key in raw if key not in _FILE_KEYS]
    if unknown:
        raise InputError(
            f"{path} has {unknown[0]!r}, which is no part of a conversation file; it may have "
            f"{', '.join(_FILE_KEYS)}. Correct or remove it."
        )
    for key in _FILE_KEYS[1:]:
        if not isinstance(raw.get(key), str | None):
            raise InputError(
                f"{path} is no conversation file: its {key} must be text, not {raw[key]!r}."
            )
    messages = [_message(item, path, index) for index, item in enumerate(raw["messages"])]
    voice = None if raw.get("voice") is None else path.parent / raw["voice"]
    return Conversation(messages, raw.get("system_prompt"), voice)


def _message(item: object, path: Path, index: int) -> Message:
    if not isinstance(item, dict) or "role" not in item or not item.keys() <= set(_KEYS):
        raise InputError(f"{path}, message {index}: give a role, and text or audio, nothing else")
    role, audio = item["role"], item.get("audio")
    for key, value in (("role", role), ("audio", audio)):
        if not isinstance(value, str) and (key == "role" or value is not None):
            raise InputError(f"{path}, message {index}: {key} must be text, not {value!r}")
    return Message(role, item.get("text"), None if audio is None else path.parent / audio)


def read_history(path: str | Path) -> Grid | None:
    """The grid that `write_history` left, or None if there is no such file.

    Raises InputError for anything else. What the file claims is checked before it is given memory.
    """
    path = Path(path)
    if not path.exists():
        return None
    if not path.is_file():
        raise InputError(f"{path} is no file and so no history. Choose another name.")
    try:
        return read_arrays(path, _LARGEST_HISTORY)["grid"]
    except PermissionError as error:
        raise InputError(unreadable(path, error, "")) from error
    except (OSError, *DAMAGED) as error:
        raise InputError(
            f"{path} is no history file ({error}). Delete it to start anew."
        ) from error


def write_history(path: str | Path, grid: Grid) -> None:
    """Write a `Result.history`, whole or not at all; it holds a voice, so a new file is readable by
    its owner alone. Raises InputError, ResourceError."""
    path, content = Path(path), io.BytesIO()
    np.savez_compressed(content, grid=grid)
    try:
        write_bytes(path, content.getvalue(), PRIVATE)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"{path} cannot be written: the disk is full, or takes no file as large as this "
                f"({error.strerror}). The file is as it was."
            ) from error
        raise InputError(f"{path} cannot be written: {error.strerror}. Check the path.") from error

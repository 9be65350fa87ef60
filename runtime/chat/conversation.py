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
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.errors import (
    DISK_FULL,
    MALFORMED,
    InputError,
    ResourceError,
)
from mimo_edge.runtime.bundle.files import write_bytes
from mimo_edge.runtime.chat.segments import Grid

# a path, the bytes of a file, wav [N], or codes [K, T]
Audio = str | Path | bytes | Floats | Ints

_KEYS = {"role", "text", "audio"}


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
        raw = json.loads(path.read_text(encoding="utf-8"))
        items = raw["messages"]
        messages = [_message(item, path, index) for index, item in enumerate(items)]
        voice = None if raw.get("voice") is None else path.parent / raw["voice"]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except MALFORMED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'{path} is no conversation file: it must be JSON with a list "messages" of '
            '{"role", "text" or "audio"}.'
        ) from error
    return Conversation(messages, raw.get("system_prompt"), voice)


def _message(item: object, path: Path, index: int) -> Message:
    if not isinstance(item, dict) or not {"role"} <= item.keys() <= _KEYS:
        raise InputError(f"{path}, message {index}: give a role, and text or audio, nothing else")
    audio = item.get("audio")
    return Message(
        item["role"], item.get("text"), None if audio is None else path.parent / str(audio)
    )


def read_history(path: str | Path) -> Grid | None:
    """The grid that `write_history` left, or None if there is no such file."""
    path = Path(path)
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            return file["grid"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} is no history file ({error}). Delete it to start anew."
        ) from error


def write_history(path: str | Path, grid: Grid) -> None:
    """Write a `Result.history`, whole or not at all. Raises InputError, ResourceError."""
    path, content = Path(path), io.BytesIO()
    np.savez_compressed(content, grid=grid)
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"{path} cannot be written: the disk is full. The file is as it was."
            ) from error
        raise InputError(f"{path} cannot be written: {error.strerror}. Check the path.") from error

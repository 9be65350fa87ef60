"""Voices that callers may name: recordings, kept in a folder or in memory, encoded once."""

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import write_audio
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.errors import DISK_FULL, AudioError, InputError, ResourceError
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.tasks import MimoAudio

# OpenAI's names, which its clients send whether asked or not: they are the model's own voice
OWN = (
    *("default", "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
    *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, eq=False)
class Voice:
    """A recording that says how an answer should sound."""

    name: str
    created: int  # seconds since 1970
    seconds: float
    codes: Ints  # [K, T]


class Voices:
    """The voices of a server. With a folder, they are its WAV files and outlive the process."""

    def __init__(
        self, model: MimoAudio, folder: Path | None = None, *, most: int, max_seconds: float
    ) -> None:
        self._model, self._folder, self._most, self._seconds = model, folder, most, max_seconds
        self._voices: dict[str, Voice] = {}
        self._lock = threading.Lock()
        if folder is not None:
            self._read(folder)

    def list(self) -> list[Voice]:
        """All of them, by name."""
        with self._lock:
            return sorted(self._voices.values(), key=lambda voice: voice.name)

    def get(self, name: str, param: str = "voice") -> Ints | None:
        """Codes [K, T] of a voice; None for the model's own. Raises RequestError."""
        if name in OWN:
            return None
        with self._lock:
            voice = self._voices.get(name)
        if voice is None:
            known = ", ".join(("default", *(v.name for v in self.list())))
            raise RequestError(
                f"There is no voice {name[:64]!r}. There are: {known}.",
                code="voice_not_found",
                param=param,
            )
        return voice.codes

    def add(self, name: str, wav: Floats) -> Voice:
        """Take in a recording [N] under a new name."""
        seconds = len(wav) / self._model.sampling_rate
        if not _NAME.fullmatch(name) or name in OWN:
            raise RequestError(
                f"A voice cannot be named {name[:64]!r}: use up to 64 letters, digits, - and _, "
                "and no name of OpenAI's.",
                param="name",
            )
        if seconds > self._seconds:
            raise RequestError(
                f"The recording of a voice may last {self._seconds:g} s, not {seconds:.1f} s; some "
                "seconds of clear speech are best.",
                param="audio_sample",
            )
        codes = self._model.encode(wav)
        with self._lock:
            if name in self._voices:
                raise RequestError(
                    f"There is a voice {name!r} already; delete it first.", status=409, param="name"
                )
            if len(self._voices) >= self._most:
                raise RequestError(f"There are {self._most} voices already; delete one first.")
            if self._folder is not None:
                try:
                    write_audio(self._folder / f"{name}.wav", wav, self._model.sampling_rate)
                except (ResourceError, AudioError) as error:
                    raise RequestError(
                        "The voice cannot be kept: the server's folder of voices takes no more.",
                        status=507,
                        code="storage_full",
                    ) from error
            voice = Voice(name, int(time.time()), seconds, codes)
            self._voices[name] = voice
        return voice

    def remove(self, name: str) -> None:
        """Forget a voice, and its file."""
        with self._lock:
            if name not in self._voices:
                raise RequestError(
                    f"There is no voice {name[:64]!r}.", status=404, code="voice_not_found"
                )
            if self._folder is not None:
                (self._folder / f"{name}.wav").unlink(missing_ok=True)
            del self._voices[name]

    def _read(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(p for p in folder.glob("*.wav") if _NAME.fullmatch(p.stem))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise ResourceError(f"{folder} cannot be made: the disk is full.") from error
            raise InputError(
                f"{folder} cannot be a folder of voices: {error.strerror}. Name another."
            ) from error
        rate = self._model.sampling_rate
        for path in paths[: self._most]:
            wav = load_audio(path, rate=rate, max_seconds=self._seconds)
            codes = self._model.encode(wav)
            created = int(path.stat().st_mtime)
            self._voices[path.stem] = Voice(path.stem, created, len(wav) / rate, codes)

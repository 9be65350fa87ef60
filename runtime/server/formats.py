"""Audio out: encoders that give the bytes of a file while its sound comes."""

import os
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import soundfile
from mimo_edge.runtime.audio.callbacks import SoundFile, raise_kept
from mimo_edge.runtime.audio.write import pcm16, wav_header
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.server.errors import RequestError

_BLOCK = 4800  # samples encoded at once
_CODED = {  # name: libsndfile's format and subtype
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "flac": ("FLAC", "PCM_16"),
}
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class Encoder(Protocol):
    """One sound, in pieces."""

    def push(self, wav: Floats) -> bytes:
        """wav [N] -> bytes that can go out, maybe none."""

    def finish(self) -> bytes:
        """The rest."""


def open_encoder(name: str, rate: int, param: str = "response_format") -> Encoder:
    """An encoder by the name that OpenAI gives its format. Raises RequestError."""
    if name == "pcm":
        return Pcm()
    if name == "wav":
        return Pcm(wav_header(rate))
    if name not in _CODED:
        raise RequestError(
            f"{param} {name!r} cannot be written: libsndfile has no encoder for it. Use one of "
            f"{', '.join(MEDIA_TYPES)}.",
            code="unsupported_format",
            param=param,
        )
    form, subtype = _CODED[name]
    if form not in soundfile.available_formats():
        raise RequestError(
            f"{param} {name!r} cannot be written by this libsndfile; use wav or pcm.",
            code="unsupported_format",
            param=param,
        )
    return Coded(form, subtype, rate)


class Pcm:
    """16 bit little-endian, behind a header or none. A WAV header says that the length is unknown:
    the sound is not over when it goes out."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def push(self, wav: Floats) -> bytes:
        """wav [N] -> bytes"""
        header, self._header = self._header, b""
        return header + pcm16(wav, "the answer").astype("<i2", copy=False).tobytes()

    def finish(self) -> bytes:
        """The header, if nothing was pushed."""
        return self.push(np.zeros(0, np.float32))


class Coded:
    """FLAC, MP3 or Opus by libsndfile."""

    def __init__(self, form: str, subtype: str, rate: int) -> None:
        self._target = _Pipe()
        self._lossless = subtype == "PCM_16"
        self._written = False
        self._file = SoundFile(
            self._target,
            mode="w",
            samplerate=rate,
            channels=1,
            subtype=subtype,
            format=form,
            # without the table that a stream cannot have, players know the length by the bit rate
            bitrate_mode="CONSTANT" if form == "MP3" else None,
            compression_level=0.5 if form == "MP3" else None,  # without it the mode is not set
        )

    def push(self, wav: Floats) -> bytes:
        """wav [N] -> bytes"""
        samples = pcm16(wav, "the answer")
        for start in range(0, len(samples), _BLOCK):
            block = samples[start : start + _BLOCK]
            self._call(partial(self._file.write, block))
            self._written = True
        return self._target.take()

    def finish(self) -> bytes:
        """The end of the file."""
        if not self._written:  # libsndfile would leave no header
            self._call(lambda: self._file.write(np.zeros(1, np.int16)))
        self._call(self._file.close)
        return self._target.take()

    def _call(self, what: Callable[[], object]) -> None:
        what()
        raise_kept(self._target)


class _Pipe:
    """What libsndfile writes, taken away as it comes.

    At the end it goes back to complete a header that is long gone: FLAC's length and checksum,
    MP3's table of contents. All of them may be left out, so those bytes are dropped.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._ready = bytearray()
        self._taken = self._at = 0  # bytes from the start

    @property
    def size(self) -> int:
        return self._taken + len(self._ready)

    def write(self, data: bytes) -> int:
        start = self._at - self._taken
        self._at += len(data)
        kept = data[max(0, -start) :]  # without what lies before the bytes that were taken
        self._ready[max(0, start) : max(0, start) + len(kept)] = kept
        return len(data)

    def read(self, count: int) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        """The bytes since the last call."""
        data = bytes(self._ready)
        self._taken += len(data)
        self._ready.clear()
        return data

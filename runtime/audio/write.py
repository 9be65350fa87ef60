"""Audio out: a sink for audio that comes in pieces, to a file or to stdout."""

import contextlib
import errno
import io
import os
import struct
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import soundfile
from mimo_edge.runtime.audio.callbacks import SoundFile, raise_kept
from mimo_edge.runtime.audio.resample import check_rate
from mimo_edge.runtime.bundle.errors import DISK_FULL, AudioError, ResourceError
from mimo_edge.runtime.bundle.files import replacing

_BLOCK = 1 << 16  # samples encoded at once; libsndfile crashes on a very long Vorbis write
_FORMATS = {  # extension: libsndfile's format and subtype
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# libsndfile crashes, without an error, on Vorbis at a rate outside these.
_VORBIS_RATES = range(1_000, 192_001)


class AudioSink(Protocol):
    """Where audio is written as it comes. Use as a context manager and write inside it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def write(self, wav: np.ndarray) -> None:
        """Append float32 `[N]`, clipped to [-1, 1]. AudioError if it is not finite or not 1-D."""


def open_sink(path: str | Path, rate: int) -> AudioSink:
    """A sink for audio of `rate` Hz: a `.wav`, `.flac`, `.ogg`, `.opus` or `.mp3` file, or `-`.

    A file appears, or is replaced, only when the `with` block ends well; after an exception
    (KeyboardInterrupt included) there is no trace of it. If nothing was written, it holds no sound
    but can be read: WAV without samples, one silent sample in formats that cannot do without. `-`
    streams 16-bit WAV of unknown length
    to stdout, flushed at each write; there a reader that has gone gives BrokenPipeError.

    Nothing is created before the `with` block, so a sink can be checked ahead of long work.
    AudioError for an unknown extension, a missing or read-only folder, a target that is not a file,
    a rate that the format cannot hold, or a terminal as stdout. Writing raises ResourceError when
    the disk is full, or a limit of file sizes is reached.
    """
    rate = check_rate(rate)
    return _StdoutSink(rate) if str(path) == "-" else _FileSink(Path(path), rate)


def pcm16(wav: np.ndarray, name: str) -> np.ndarray:
    """float32 `[N]` as int16 `[N]`; AudioError, with the sink's name, as `AudioSink.write`."""
    return _pcm16(_clipped(wav, name))


def write_audio(path: str | Path, wav: np.ndarray, rate: int) -> None:
    """Write float32 `[N]` of `rate` Hz to `path`, whole or not at all. Errors as `open_sink`."""
    with open_sink(path, rate) as sink:
        sink.write(wav)


class _FileSink:
    def __init__(self, path: Path, rate: int) -> None:
        # A link stays a link: what it points to is replaced.
        self._path = Path(os.path.realpath(path))
        self._rate = rate
        self._name = repr(str(path))
        self._file: Any = None
        self._target: _Target | None = None
        self._written = 0  # samples
        if path.suffix.lower() not in _FORMATS:
            raise AudioError(
                f"cannot write {self._name}: the extension {path.suffix!r} names no known format; "
                f"use one of {', '.join(_FORMATS)}, or - for stdout"
            )
        self._format, self._subtype = _FORMATS[path.suffix.lower()]
        folder = self._path.parent
        if not folder.is_dir():
            raise AudioError(
                f"cannot write {self._name}: there is no folder {str(folder)!r}; create it first"
            )
        if self._path.exists() and not self._path.is_file():
            raise AudioError(
                f"cannot write {self._name}: it exists and is not a regular file; "
                "choose another name"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise AudioError(
                f"cannot write {self._name}: no permission to create files in {str(folder)!r}; "
                "choose another folder"
            )
        if not self._holds_rate():
            raise AudioError(
                f"cannot write {self._name}: {self._subtype} cannot hold {rate} Hz; "
                "use .wav or another rate"
            )
        self._place = contextlib.ExitStack()  # holds the temporary file that becomes the target

    def _holds_rate(self) -> bool:
        if self._subtype == "VORBIS" and self._rate not in _VORBIS_RATES:
            return False
        try:  # only the encoder knows, and it needs no file to say
            with self._encoder(_Target(io.BytesIO())):
                return True
        except soundfile.SoundFileError:
            return False

    def _encoder(self, target: Any) -> Any:
        return SoundFile(
            target,
            mode="w",
            samplerate=self._rate,
            channels=1,
            subtype=self._subtype,
            format=self._format,
        )

    def __enter__(self) -> Self:
        try:
            temporary = self._place.enter_context(replacing(self._path))
            self._target = _Target(temporary.open("w+b"))
            self._file = self._encoder(self._target)
            self._check()
        except BaseException as error:
            self._discard()
            if isinstance(error, soundfile.SoundFileError | OSError):
                raise self._failed(error) from None
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self._written == 0 and self._format != "WAV":
                    self.write(np.zeros(1, np.float32))  # libsndfile would leave no header
                self._file.close()  # libsndfile writes the end, and is silent about its failure
                self._check()
                assert self._target is not None
                self._target.close()
                self._place.close()
        except (soundfile.SoundFileError, OSError) as failure:
            raise self._failed(failure) from None
        finally:
            self._discard()  # the temporary file is gone already where all went well

    def write(self, wav: np.ndarray) -> None:
        if self._file is None:
            raise AudioError(f"cannot write {self._name}: write only inside the sink's with block")
        samples = _clipped(wav, self._name)
        if self._subtype == "PCM_16":
            samples = _pcm16(samples)
        try:
            for start in range(0, samples.shape[0], _BLOCK):
                self._file.write(samples[start : start + _BLOCK])
                self._check()
            # soundfile only asserts that all was written; a short write has its cause in the target
        except (soundfile.SoundFileError, OSError, AssertionError) as error:
            raise self._failed(error) from None
        self._written += samples.shape[0]

    def _check(self) -> None:
        if self._target is not None:
            raise_kept(self._target)

    def _discard(self) -> None:
        """Close what is open and delete the temporary file; what fails now has its own error."""
        file, self._file = self._file, None
        for opened in (file, self._target):
            with contextlib.suppress(soundfile.SoundFileError, OSError):
                if opened is not None:
                    opened.close()
        self._target = None
        unfinished = AudioError(f"{self._name} was not finished")
        self._place.__exit__(AudioError, unfinished, None)  # nothing to do where all went well

    def _failed(self, error: BaseException) -> ResourceError:
        cause = getattr(self._target, "error", None) or error
        if not isinstance(cause, Exception):
            raise cause  # Ctrl-C, while libsndfile was calling
        number = cause.errno if isinstance(cause, OSError) else None
        remedy = f"is the disk of {str(self._path.parent)!r} full or gone?"
        if number == errno.EFBIG:
            remedy = (
                "a file may not become so large here (ulimit -f, or the file system: FAT32 ends at "
                "4 GiB); write it elsewhere or in parts."
            )
        elif number in DISK_FULL:
            remedy = f"the disk of {str(self._path.parent)!r} is full; free some space."
        elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
            remedy = f"{str(self._path.parent)!r} may not be written; choose another folder."
        return ResourceError(
            f"could not write {self._name} ({str(cause) or 'short write'}); {remedy} "
            "Nothing was left behind"
        )


class _Target:
    """The temporary file as libsndfile writes it.

    Its Vorbis, Opus and MP3 encoders do not look at what was written: `error` is the only sign.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    @property
    def size(self) -> int:
        at = self._file.tell()
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(at)
        return end

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)  # writes what is buffered

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class _StdoutSink:
    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._begun = self._open = False
        if sys.stdout is None:
            raise AudioError("stdout is closed; name a file instead of -")
        if sys.stdout.isatty():
            raise AudioError(
                "stdout is a terminal; pipe it into a player or a file, or name a file instead of -"
            )

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.write(np.zeros(0, np.float32))  # an empty stream is still a WAV file
        self._open = False

    def write(self, wav: np.ndarray) -> None:
        if not self._open:
            raise AudioError("cannot write to stdout: write only inside the sink's with block")
        samples = pcm16(wav, "stdout")
        out = sys.stdout.buffer
        if not self._begun:
            out.write(wav_header(self._rate))
            self._begun = True
        out.write(samples.astype("<i2", copy=False).tobytes())
        out.flush()


def wav_header(rate: int) -> bytes:
    """Mono PCM16 of unknown length: both sizes at their maximum, as players expect of a pipe."""
    unknown = 0xFFFFFFFF
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    return struct.pack(
        "<4sI4s4sI16s4sI", b"RIFF", unknown, b"WAVE", b"fmt ", 16, form, b"data", unknown
    )


def _clipped(wav: np.ndarray, name: str) -> np.ndarray:
    if wav.ndim != 1 or not np.issubdtype(wav.dtype, np.floating):
        raise AudioError(
            f"cannot write {name}: audio is float32 [N], not {wav.dtype} {list(wav.shape)}"
        )
    if not np.isfinite(wav).all():
        raise AudioError(
            f"cannot write {name}: the audio holds NaN or inf; if a model made it, a component "
            "overflowed: build that component in a wider precision"
        )
    return np.clip(wav, -1, 1).astype(np.float32, copy=False)


def _pcm16(wav: np.ndarray) -> np.ndarray:
    """int16 `[N]`. libsndfile would cut to whole steps; this rounds, so 16-bit audio is exact."""
    return np.clip(np.rint(wav * 32768), -32768, 32767).astype(np.int16)

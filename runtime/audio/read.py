"""Audio in: files, bytes, streams and arrays to *wav*, float32 `[N]`, one channel, 24 kHz.

Here is the only place where other rates, channels and formats exist, and where audio that the model
cannot take is refused with a remedy. Audio out is `audio_sink`; its names are offered here too.
"""

import contextlib
import io
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from mimo_edge.runtime.audio.resample import Resampler, resampled_length
from mimo_edge.runtime.audio.write import AudioSink, open_sink, write_audio
from mimo_edge.runtime.bundle.errors import AudioError

__all__ = [
    "MAX_SECONDS",
    "MIN_SAMPLES",
    "SAMPLE_RATE",
    "AudioSink",
    "check_audio",
    "load_audio",
    "open_sink",
    "write_audio",
]

SAMPLE_RATE = 24_000  # Hz, of the audio tokenizer
MIN_SAMPLES = 481  # the mel front end reflects 480 samples (half an n_fft of 960) at each end
MAX_SECONDS = 1800.0  # `max_audio_seconds` of the released audio tokenizer's config

_BLOCK = 1 << 20  # samples, all channels together, decoded at once (4 MiB)
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's count where a header has none, as in a piped FLAC


def load_audio(
    source: str | Path | bytes | BinaryIO,
    *,
    rate: int = SAMPLE_RATE,
    max_seconds: float = MAX_SECONDS,
    min_samples: int = MIN_SAMPLES,
) -> np.ndarray:
    """Read WAV, FLAC, MP3, Ogg Vorbis or Opus as wav: float32 `[N]` at `rate` Hz.

    `source` is a path, the bytes of a file, or a binary stream, read from its start where it can
    seek and to its end where it cannot. Channels are averaged, then resampled, in blocks: beside
    the result it takes some tens of MiB, however long the file. Samples of float files may exceed
    [-1, 1] and stay as they are, as upstream leaves them.

    AudioError, naming the source and the remedy, if it cannot be opened, is not audio, is damaged,
    holds NaN or inf, no samples or fewer than `min_samples`, or lasts longer than `max_seconds`.
    """
    name = _name(source)
    with _opened(source, name) as file, _decoder(file, name) as decoder:
        known = decoder.frames < _UNKNOWN_FRAMES
        if known and decoder.frames > max_seconds * decoder.samplerate:
            raise _too_long(name, decoder.frames / decoder.samplerate, max_seconds)
        try:
            resampler = Resampler(decoder.samplerate, rate)
        except AudioError as error:
            raise AudioError(f"{name}: {error}") from None
        frames = decoder.frames if known else 0
        expected = resampled_length(frames, decoder.samplerate, rate)
        wav = _collect(_resampled(_mono(decoder, name, max_seconds), resampler), expected)
    _check_length(wav.shape[0], rate, name, None, min_samples)  # checked in the file's own rate
    return wav


def check_audio(
    wav: np.ndarray,
    *,
    rate: int = SAMPLE_RATE,
    max_seconds: float = MAX_SECONDS,
    min_samples: int = MIN_SAMPLES,
    name: str = "the audio array",
) -> np.ndarray:
    """Check an array that a program gave as wav and return it as contiguous float32 `[N]`.

    Any floating-point dtype is converted. That the samples are of `rate` Hz nothing in an array can
    tell. AudioError, beginning with `name`, if it is not 1-D floating point, holds NaN or
    inf, is shorter than `min_samples` or lasts longer than `max_seconds`.
    """
    wav = np.asarray(wav)
    if not np.issubdtype(wav.dtype, np.floating):
        raise AudioError(
            f"{name} is {wav.dtype}, not float32 in [-1, 1]; divide integer samples by their full "
            "scale (32768 for int16)"
        )
    if wav.ndim != 1:
        raise AudioError(
            f"{name} has the shape {list(wav.shape)}, not [N]; average the channels to one, "
            "for example wav.mean(axis=0) of [C, N]"
        )
    _check_length(wav.shape[0], rate, name, max_seconds, min_samples)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf and is refused below
        wav = np.ascontiguousarray(wav, np.float32)
    _check_finite(wav, 0, rate, name)
    return wav


class _Decoder(soundfile.SoundFile):  # type: ignore[misc]  # untyped
    """Reads strictly forwards.

    soundfile seeks after every read of a seekable file. That doubles the time of an MP3, and fails
    for a FLAC without a length in its header.
    """

    def seekable(self) -> bool:
        return False


def _name(source: object) -> str:
    if isinstance(source, str | Path):
        return f"the audio file {str(source)!r}"
    if isinstance(source, bytes | bytearray | memoryview):
        return "the audio given as bytes"
    name = getattr(source, "name", None)  # of an open file; a pipe has a number or none
    return f"the audio stream {name!r}" if isinstance(name, str) else "the audio stream"


@contextlib.contextmanager
def _opened(source: str | Path | bytes | BinaryIO, name: str) -> Iterator[int | BinaryIO]:
    """What libsndfile reads: a file descriptor, or a seekable stream at its start."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | Path):
        yield _seekable(source, name)  # the caller's, so left open
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(source).open("rb"))
        except FileNotFoundError:
            raise AudioError(f"{name} does not exist; check the path") from None
        except IsADirectoryError:
            raise AudioError(f"{name} is a directory; name a file in it") from None
        except PermissionError:
            raise AudioError(f"{name} may not be read; change its permissions") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise AudioError(f"{name} cannot be opened ({error}); check the path") from None
        # The descriptor, not the path: soundfile takes a path ending in .raw as headerless.
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        yield file.fileno() if regular else _seekable(file, name)


def _seekable(stream: BinaryIO, name: str) -> BinaryIO:
    try:
        if stream.seekable():
            stream.seek(0)  # libsndfile starts where it stands, at the end of a buffer just filled
            if isinstance(stream.read(0), bytes):
                return stream
        return io.BytesIO(stream.read())  # a pipe; TypeError if it reads text
    except (AttributeError, TypeError, ValueError) as error:
        raise AudioError(
            f"{name} is not an open binary stream ({error}); give a path, bytes, or a file opened "
            "with mode 'rb'"
        ) from None
    except OSError as error:
        raise AudioError(f"{name} cannot be read ({error}); save it to a file first") from None


@contextlib.contextmanager
def _decoder(file: int | BinaryIO, name: str) -> Iterator[Any]:
    try:
        decoder = _Decoder(file, closefd=False)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a stream named *.raw
        size = os.fstat(file).st_size if isinstance(file, int) else file.seek(0, os.SEEK_END)
        if size == 0:
            raise AudioError(f"{name} is empty (0 bytes); record or export it again") from None
        raise AudioError(
            f"{name} is not audio in a known format ({str(error).rsplit(': ', 1)[-1]}); give WAV, "
            "FLAC, MP3, Ogg Vorbis or Opus, or convert it: ffmpeg -i INPUT OUTPUT.wav"
        ) from None
    with decoder:
        yield decoder


def _mono(decoder: Any, name: str, max_seconds: float) -> Iterator[np.ndarray]:
    """The channels' mean, float32 `[n]` at the file's rate, block by block."""
    rate, done = decoder.samplerate, 0
    frames = max(1, _BLOCK // decoder.channels)
    while True:
        try:
            block = decoder.read(frames, dtype="float32", always_2d=True)  # [n, C]
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{name} is damaged or cut short after {done / rate:.2f} s ({error}); "
                "fetch or export it again"
            ) from None
        if block.shape[0] == 0:
            return
        mono = block.mean(axis=1) if decoder.channels > 1 else block[:, 0]
        _check_finite(mono, done, rate, name)
        done += block.shape[0]
        if done > max_seconds * rate:  # the header did not say, or not the truth
            raise _too_long(name, None, max_seconds)
        yield mono


def _resampled(pieces: Iterator[np.ndarray], resampler: Resampler) -> Iterator[np.ndarray]:
    for piece in pieces:
        yield resampler.feed(piece)
    yield resampler.finish()


def _collect(pieces: Iterator[np.ndarray], expected: int) -> np.ndarray:
    """Join the pieces in one array, grown in place: a list and its sum would need twice as much."""
    wav, filled = np.empty(expected, np.float32), 0
    for piece in pieces:
        end = filled + piece.shape[0]
        if end > wav.shape[0]:
            wav.resize(max(end, wav.shape[0] * 3 // 2), refcheck=False)
        wav[filled:end] = piece
        filled = end
    wav.resize(filled, refcheck=False)
    return wav


def _check_length(
    samples: int, rate: int, name: str, max_seconds: float | None, min_samples: int
) -> None:
    if samples == 0:
        raise AudioError(f"{name} holds no samples; record or export it again")
    if samples < min_samples:
        raise AudioError(
            f"{name} is too short: {samples} samples at {rate} Hz ({1000 * samples / rate:.1f} ms),"
            f" the model needs {min_samples}; add silence or record more"
        )
    if max_seconds is not None and samples > max_seconds * rate:
        raise _too_long(name, samples / rate, max_seconds)


def _check_finite(wav: np.ndarray, start: int, rate: int, name: str) -> None:
    finite = np.isfinite(wav)
    if not finite.all():
        at = (start + int(np.argmin(finite))) / rate
        raise AudioError(
            f"{name} holds a NaN or an infinite sample at {at:.3f} s; export it again or replace "
            "such samples by 0"
        )


def _too_long(name: str, seconds: float | None, max_seconds: float) -> AudioError:
    lasts = "lasts" if seconds is None else f"lasts {math.ceil(seconds)} s,"
    return AudioError(
        f"{name} {lasts} longer than the limit of {max_seconds:g} s; cut it into shorter pieces or "
        "raise max_seconds"
    )

"""Audio in: files, bytes, streams and arrays to *wav*, float32 `[N]`, one channel, 24 kHz.

Here is the only place where other rates, channels and formats exist, and where audio that the model
cannot take is refused with a remedy. Where the bytes come from is `source`, what a container
announces and holds `layout`. Audio out is `write`; its names are offered here too.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import soundfile
from mimo_edge.runtime.audio.callbacks import SoundFile, raise_kept
from mimo_edge.runtime.audio.channels import downmix_weights
from mimo_edge.runtime.audio.flac import is_cut
from mimo_edge.runtime.audio.layout import LESS_THAN_HELD, Layout, cut_short
from mimo_edge.runtime.audio.quiet import quiet_stderr
from mimo_edge.runtime.audio.resample import Resampler, check_rate, resample, resampled_length
from mimo_edge.runtime.audio.source import (
    Source,
    opened,
    source_name,
    too_long,
    unknown_format,
)
from mimo_edge.runtime.audio.window import Window
from mimo_edge.runtime.audio.write import AudioSink, open_sink, write_audio
from mimo_edge.runtime.bundle.errors import AudioError

__all__ = [
    "MAX_SECONDS",
    "MIN_SAMPLES",
    "SAMPLE_RATE",
    "AudioSink",
    "audio_from_array",
    "check_audio",
    "load_audio",
    "open_sink",
    "write_audio",
]

SAMPLE_RATE = 24_000  # Hz, of the audio tokenizer
MIN_SAMPLES = 481  # the mel front end reflects 480 samples (half an n_fft of 960) at each end
MAX_SECONDS = 1800.0  # `max_audio_seconds` of the released audio tokenizer's config

_BLOCK = 1 << 20  # samples, all channels together, decoded at once (4 MiB)
_STEP = 4096  # frames asked for at once: what a decoder loses when it fails within them
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's count where a header has none, as in a piped FLAC
_RATES = 1000, 768_000  # Hz; what claims less or more would be heard as silence or a click
_LOUDEST = 100.0  # float samples beyond this are integers that nobody scaled; 1 is full scale


def load_audio(
    source: Source,
    *,
    rate: int = SAMPLE_RATE,
    max_seconds: float = MAX_SECONDS,
    min_samples: int = MIN_SAMPLES,
) -> np.ndarray:
    """Read WAV, FLAC, MP3, Ogg Vorbis or Opus as wav: float32 `[N]` at `rate` Hz.

    AIFF, AU, CAF, RF64, Wave64 and NIST SPHERE are read too. `source` is a path, `-` for stdin, the
    bytes of a file, or a binary stream, read from its start where it can seek and to its end where
    it cannot. Two channels are averaged; surround layouts are mixed so that a voice in the centre
    keeps its level (`downmix_weights`). Then it is resampled. All that in blocks: beside the result
    it takes some tens of MiB, however long the file; a pipe's bytes are held too. Samples of float
    files may exceed [-1, 1] and stay as they are, as upstream leaves them.

    AudioError, naming the source and the remedy, if it cannot be opened, is not audio, is damaged
    or cut short, holds more than one stream, NaN or inf, float samples in the range of integers, no
    samples or fewer than `min_samples`, or lasts longer than `max_seconds`.
    """
    name = source_name(source)
    with opened(source, name, max_seconds) as (file, layout):
        window = Window(file, layout.start, layout.stop, layout.fields, layout.told)
        with _decoder(window, layout, name) as decoder:
            announced = _announced(decoder, layout)
            if announced is not None and announced > max_seconds * decoder.samplerate:
                raise too_long(name, announced / decoder.samplerate, max_seconds)
            resampler = _resampler(decoder.samplerate, rate, name)
            # What a header announces is not believed before it is there: the room grows with it.
            likely = min(announced or 0, 64 * window.size)
            expected = resampled_length(likely, decoder.samplerate, rate)
            blocks = _blocks(decoder, window, file, layout, name, max_seconds)
            wav = _collect(_resampled(_mono(blocks, decoder, layout, name), resampler), expected)
    _check_length(wav.shape[0], rate, name, min_samples)  # the longest: in the file's own rate
    return wav


def audio_from_array(
    wav: np.ndarray,
    sampling_rate: int,
    *,
    rate: int = SAMPLE_RATE,
    max_seconds: float = MAX_SECONDS,
    min_samples: int = MIN_SAMPLES,
    name: str = "the audio array",
) -> np.ndarray:
    """An array `[N]` of `sampling_rate` Hz as wav of `rate` Hz. Errors as `check_audio`."""
    try:
        sampling_rate = check_rate(sampling_rate)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None
    wav = _checked(wav, sampling_rate, max_seconds, name)
    _resampler(sampling_rate, rate, name)  # refuses an absurd ratio by name
    if sampling_rate != rate:
        wav = resample(wav, sampling_rate, rate)
    _check_length(wav.shape[0], rate, name, min_samples)
    return wav


def check_audio(
    wav: np.ndarray, *, max_seconds: float = MAX_SECONDS, name: str = "the audio array"
) -> np.ndarray:
    """Check an array that a program gave as wav and return it as contiguous float32 `[N]`.

    Any floating-point dtype is converted; the samples are taken to be 24 kHz, as nothing in an
    array can tell (`audio_from_array` takes other rates). AudioError, beginning with `name`, if it
    is not 1-D floating point, holds NaN, inf or samples in the range of integers, is shorter than
    `MIN_SAMPLES` or lasts longer than `max_seconds`.
    """
    wav = _checked(wav, SAMPLE_RATE, max_seconds, name)
    _check_length(wav.shape[0], SAMPLE_RATE, name)
    return wav


def _checked(wav: np.ndarray, rate: int, max_seconds: float, name: str) -> np.ndarray:
    """All of `check_audio` but the shortest length, which counts at the model's rate."""
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
    if wav.shape[0] > max_seconds * rate:
        raise too_long(name, wav.shape[0] / rate, max_seconds)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf and is refused below
        wav = np.ascontiguousarray(wav, np.float32)
    _check_samples(wav, 0, rate, name)
    return wav


def _quiet(layout: Layout) -> contextlib.AbstractContextManager[None]:
    """Around every call that may reach libmpg123."""
    return quiet_stderr() if layout.kind == "MP3" else contextlib.nullcontext()


@contextlib.contextmanager
def _decoder(window: Window, layout: Layout, name: str) -> Iterator[Any]:
    """libsndfile at the beginning of the sound, which is all there as far as can be told before."""
    if layout.cut and layout.rate:
        whole = None if layout.announced is None else layout.announced / layout.rate
        raise cut_short(name, layout.there / layout.rate, whole)
    try:
        with _quiet(layout):
            decoder = SoundFile(window, closefd=False)
    except soundfile.SoundFileError as error:
        raise_kept(window)
        if layout.cut:
            raise cut_short(name, 0, None) from None
        raise unknown_format(
            name, f"it begins as {layout.kind}, {_words(error)} Is it cut short or damaged?"
        ) from None
    with decoder:
        if layout.cut:
            there = decoder.frames / decoder.samplerate if decoder.frames < _UNKNOWN_FRAMES else 0
            whole = None
            if layout.announced is not None and layout.there > 0:
                whole = there * layout.announced / layout.there
            raise cut_short(name, there, whole)
        yield decoder


def _words(error: soundfile.SoundFileError) -> str:
    """libsndfile's own, without soundfile's words about which object it was."""
    return str(error).rsplit(": ", 1)[-1]


def _announced(decoder: Any, layout: Layout) -> int | None:
    """Frames by the header, or counted; None if nobody knows."""
    if layout.kind == "FLAC" or layout.told:
        return layout.announced
    return int(decoder.frames) if decoder.frames < _UNKNOWN_FRAMES else None


def _blocks(
    decoder: Any,
    window: Window,
    file: BinaryIO,
    layout: Layout,
    name: str,
    max_seconds: float,
) -> Iterator[np.ndarray]:
    """The sound, float32 `[n, channels]`, block by block, up to the announced length."""
    rate, done = decoder.samplerate, 0
    announced = _announced(decoder, layout)
    size = max(1, _BLOCK // decoder.channels)
    while True:
        wanted = size if announced is None else min(size, announced - done)
        block, failure = _block(decoder, layout, wanted)
        raise_kept(window)
        if block.shape[0]:
            done += block.shape[0]
            yield block
        if done > max_seconds * rate:  # the header did not say, or not the truth
            raise too_long(name, None, max_seconds)
        if failure is None and block.shape[0] == size and done != announced:
            continue
        if announced is not None and done >= announced:
            if layout.kind == "FLAC" and _block(decoder, layout, 1)[0].shape[0]:
                raise AudioError(f"{name} {LESS_THAN_HELD}")
            return
        if failure is None and (announced is None or layout.announced is None):
            return
        there, whole = done / rate, announced / rate if announced is not None else None
        cut = layout.kind == "FLAC" and is_cut(file, layout.start, layout.stop, done)
        if cut or (failure is None and not layout.told):
            raise cut_short(name, there, whole)
        why = "frames do not decode" if failure is None else _words(failure)
        raise AudioError(f"{name} is damaged after {there:.2f} s ({why}); fetch or export it again")


def _block(
    decoder: Any, layout: Layout, frames: int
) -> tuple[np.ndarray, soundfile.SoundFileError | None]:
    """Up to `frames` frames, float32 `[n, channels]`; fewer at the end, or with what went wrong."""
    block, filled = np.empty((frames, decoder.channels), np.float32), 0
    while filled < frames:
        try:
            with _quiet(layout):
                read = decoder.read(out=block[filled : filled + _STEP])
        except soundfile.SoundFileError as error:
            return block[:filled], error
        if read.shape[0] == 0:
            break
        filled += read.shape[0]
    return block[:filled], None


def _mono(
    blocks: Iterator[np.ndarray], decoder: Any, layout: Layout, name: str
) -> Iterator[np.ndarray]:
    """One channel of each block, float32 `[n]`, checked."""
    done = 0
    xiph = decoder.subtype in ("VORBIS", "OPUS")
    weights = downmix_weights(decoder.channels, layout.mask, xiph=xiph)
    for block in blocks:
        with np.errstate(invalid="ignore", over="ignore"):  # found and refused next
            mono = block @ weights if decoder.channels > 1 else block[:, 0]
        _check_samples(mono, done, decoder.samplerate, name)
        done += block.shape[0]
        yield mono


def _resampler(from_rate: int, to_rate: int, name: str) -> Resampler:
    if not _RATES[0] <= from_rate <= _RATES[1]:
        raise AudioError(
            f"{name} has a sampling rate of {from_rate} Hz, which no recording of speech has "
            f"({_RATES[0]} to {_RATES[1]} Hz): its header is wrong; export it again"
        )
    try:
        return Resampler(from_rate, to_rate)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None


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


def _check_length(samples: int, rate: int, name: str, min_samples: int = MIN_SAMPLES) -> None:
    if samples == 0:
        raise AudioError(f"{name} holds no samples; record or export it again")
    if samples < min_samples:
        raise AudioError(
            f"{name} is too short: {samples} samples at {rate} Hz ({1000 * samples / rate:.1f} ms),"
            f" the model needs {min_samples}; add silence or record more"
        )


def _check_samples(wav: np.ndarray, start: int, rate: int, name: str) -> None:
    finite = np.isfinite(wav)
    if not finite.all():
        at = (start + int(np.argmin(finite))) / rate
        raise AudioError(
            f"{name} holds a NaN or an infinite sample at {at:.3f} s; export it again or replace "
            "such samples by 0"
        )
    peak = max(wav.max(initial=0), -wav.min(initial=0))
    if peak > _LOUDEST:
        raise AudioError(
            f"{name} holds a sample of {peak:g} where full scale is 1: integers written as float; "
            "divide the samples by their full scale (32768 for int16)"
        )

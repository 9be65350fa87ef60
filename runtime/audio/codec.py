"""Audio to codes and back, whole or as a stream, in windows that bound the memory."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from mimo_edge.runtime.audio.stateful import LOOKAHEAD, StatefulStream
from mimo_edge.runtime.backends.base import AudioPieces, Floats, Ints
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import AUDIO_SECONDS
from mimo_edge.runtime.chat.answer import decode_pieces
from mimo_edge.runtime.chat.segments import pad_codes

LEFT_OVERLAP = 250  # frames; upstream's defaults
RIGHT_OVERLAP = 40
WINDOWED, STATEFUL = "windowed", "stateful"
STREAMS = (WINDOWED, STATEFUL)


class CodecStream(Protocol):
    """Codes to sound while they come."""

    def push(self, codes: Ints) -> Floats:
        """codes [K, T], T may be 0 -> what can sound now, maybe nothing."""

    def finish(self, codes: Ints | None = None) -> Floats:
        """The last codes, if any are left -> the rest of the stream, which is then as new."""

    def close(self) -> None:
        """Give the memory back; the stream is of no use afterwards."""


def stream_kind(kind: str | None, left: int | None, right: int | None) -> str:
    """Which of `STREAMS` is meant: stateful, unless overlaps say that it is windowed."""
    if kind is None:
        return STATEFUL if left is None and right is None else WINDOWED
    if kind not in STREAMS:
        raise InputError(f"there is no codec stream {kind!r}; choose one of {', '.join(STREAMS)}")
    return kind


def open_stream(
    codec: AudioPieces,
    kind: str | None = None,
    *,
    left: int | None = None,
    right: int | None = None,
    lookahead: int | None = None,
) -> CodecStream:
    """A stream of one of `STREAMS`; without `kind`, see `stream_kind`.

    `left` and `right` are windowed's overlaps, `lookahead` is stateful's, in frames; None stands
    for the default. Raises InputError for settings that do not fit each other.
    """
    if check_stream(kind, left, right, lookahead) == WINDOWED:
        return StreamDecoder(
            codec,
            LEFT_OVERLAP if left is None else left,
            RIGHT_OVERLAP if right is None else right,
        )
    return StatefulStream(codec, LOOKAHEAD if lookahead is None else lookahead)


def check_stream(
    kind: str | None, left: int | None, right: int | None, lookahead: int | None
) -> str:
    """The kind of stream that these settings mean. Raises InputError if they do not fit each
    other."""
    kind = stream_kind(kind, left, right)
    if kind == STATEFUL:
        if left is not None or right is not None:
            raise InputError("a stateful stream has no overlaps: it has a lookahead")
        return kind
    if lookahead is not None:
        raise InputError("a windowed stream has no lookahead: it has a right overlap")
    left, right = LEFT_OVERLAP if left is None else left, RIGHT_OVERLAP if right is None else right
    check_overlaps(left, right)
    return kind


class NoSound:
    """The stream of an answer that is not spoken."""

    def push(self, codes: Ints) -> Floats:
        """Nothing."""
        return np.zeros(0, np.float32)

    def finish(self, codes: Ints | None = None) -> Floats:
        """Nothing."""
        return np.zeros(0, np.float32)

    def close(self) -> None:
        """Nothing to give back."""


def stream_pieces(kind: str) -> tuple[str, ...]:
    """The pieces that a stream runs, to load them before its first codes come."""
    return ("tokenizer_decoder",) if kind == WINDOWED else ("mel_stream", "vocoder_stream")


def encode(backend: AudioPieces, wav: Floats) -> Ints:
    """wav [N] at the model's rate -> codes [n_q, T], T a multiple of group_size.

    The last frame is repeated to fill its patch, as upstream does.
    """
    model = backend.bundle.model
    segment = AUDIO_SECONDS * model.sampling_rate // model.hop_length  # mel frames
    codes = [backend.encode(mel)[: model.n_q] for mel in _mel_segments(backend, wav, segment)]
    return pad_codes(np.concatenate(codes, axis=1), model.group_size)


def _mel_segments(backend: AudioPieces, wav: Floats, segment: int) -> Iterator[Floats]:
    """Log-mel in segments. A segment's frames see the audio around it, so cuts do not show."""
    model = backend.bundle.model
    hop, margin = model.hop_length, -(-model.n_fft // 2 // model.hop_length)  # frames
    total = 1 + len(wav) // hop
    for start in range(0, total, segment):
        stop = min(start + segment, total)
        first, last = max(0, start - margin), stop + margin
        piece = wav[first * hop : last * hop]
        if first * hop + len(piece) == len(wav) and len(piece) <= model.n_fft // 2:
            first -= margin  # too short for the transform: take more audio before it
            piece = wav[first * hop :]
        yield backend.mel(piece)[start - first : stop - first]


def decode(backend: AudioPieces, codes: Ints) -> Floats:
    """codes [K, T] -> wav [T * samples_per_frame], in independent pieces of a minute."""
    parts = [
        backend.decode(codes[None, :, start:stop], np.array([stop - start], np.int64))[0]
        for start, stop in decode_pieces(codes.shape[1])
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def check_overlaps(left: int, right: int) -> None:
    """Raises InputError for overlaps that no stream can have."""
    if not 0 <= right <= left:
        raise InputError(
            f"left overlap {left} and right overlap {right}: the left one must not be the "
            "smaller, and neither below 0; upstream uses 250 and 40 frames"
        )


class StreamDecoder:
    """Upstream's windowed streaming decode of one stream.

    Every call decodes the remembered window and what is new, and returns all but the last `right`
    frames, whose audio still depends on the future; `left` frames are remembered as context. With
    upstream's right overlap of 40 frames the first sound waits for 1.6 s of speech.
    """

    def __init__(
        self, backend: AudioPieces, left: int = LEFT_OVERLAP, right: int = RIGHT_OVERLAP
    ) -> None:
        check_overlaps(left, right)
        self._backend, self.left, self.right = backend, left, right
        self._window = np.zeros((backend.bundle.model.n_q, 0), np.int64)
        self._sounded = 0  # frames of the window that were returned

    def push(self, codes: Ints) -> Floats:
        """codes [K, T], T may be 0 -> what can sound now, maybe nothing."""
        self._remember(codes)
        length = self._window.shape[1]
        end = length - self.right
        if end <= 0:
            return np.zeros(0, np.float32)
        wav = self._decode(self._sounded, end)
        forgotten = max(0, length - self.left)
        self._window = self._window[:, forgotten:]
        self._sounded = end - forgotten
        return wav

    def finish(self, codes: Ints | None = None) -> Floats:
        """The last codes, if any are left -> the rest of the stream; the decoder is then as new."""
        if codes is not None:
            self._remember(codes)
        length = self._window.shape[1]
        wav = self._decode(self._sounded, length)
        self._window, self._sounded = self._window[:, :0], 0
        return wav

    def close(self) -> None:
        self._window, self._sounded = self._window[:, :0], 0

    def _remember(self, codes: Ints) -> None:
        self._window = np.concatenate((self._window, codes), axis=1)

    def _decode(self, start: int, stop: int) -> Floats:
        if stop <= start:
            return np.zeros(0, np.float32)
        length = self._window.shape[1]
        wav = self._backend.decode(self._window[None], np.array([length], np.int64))[0]
        samples = self._backend.bundle.model.samples_per_frame
        return wav[start * samples : stop * samples]

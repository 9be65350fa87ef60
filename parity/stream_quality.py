"""What streaming costs in sound: a codec's stream against the whole decode of the same codes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from mimo_edge.parity.side import Streamed
from mimo_edge.parity.tolerances import snr
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.codec import STATEFUL, WINDOWED, CodecStream
from mimo_edge.runtime.audio.stateful import StatefulStream
from mimo_edge.runtime.backends.base import AudioPieces, Floats, Ints

SEAM_SECONDS = 0.010  # on both sides of a seam
QUIET = -6.0  # log-mel below this is silence, where a difference means nothing


@dataclass(frozen=True)
class Setting:
    """A stream: `ahead` is stateful's lookahead or windowed's right overlap, in frames; `chunk`
    patches are decoded at a time, and in a stateful stream sound together as one block."""

    kind: str
    ahead: int
    chunk: int

    def open(self, backend: AudioPieces) -> CodecStream:
        """A stream of this setting, on its own."""
        if self.kind == WINDOWED:
            return codec.open_stream(backend, WINDOWED, right=self.ahead)
        return StatefulStream(backend, self.ahead, self.chunk * backend.bundle.model.group_size)

    def first_sound(self, group_size: int) -> int:
        """Frames of speech before the first sound, which come as whole patches."""
        if self.kind == STATEFUL:  # a block and what it looks ahead at, pushed patch by patch
            frames = self.chunk * group_size + self.ahead
            return -(-frames // group_size) * group_size
        chunk = self.chunk * group_size  # pushed in chunks; what overlaps on the right waits
        return (self.ahead // chunk + 1) * chunk


@dataclass
class Quality:
    """Of one setting, over some utterances."""

    setting: Setting
    words: WordErrors = field(default_factory=WordErrors)
    snr: list[float] = field(default_factory=list)  # dB against the whole decode
    mel_distance: list[float] = field(default_factory=list)  # mean |log-mel difference|
    seam: list[float] = field(default_factory=list)  # dB, see `seam_error`

    def add(
        self, backend: AudioPieces, text: str, codes: Ints, transcribe: Callable[[Floats], str]
    ) -> None:
        """Stream the codes [K, T] of a text, and compare with the whole decode."""
        whole = codec.decode(backend, codes)
        wav, seams = stream(self.setting, backend, codes)
        self.words.add(transcribe(wav), text)
        self.snr.append(snr(wav, whole))
        self.mel_distance.append(mel_distance(backend, wav, whole))
        error = seam_error(wav, whole, seams, backend.bundle.model.sampling_rate)
        if error is not None:
            self.seam.append(error)


def stream(setting: Setting, backend: AudioPieces, codes: Ints) -> tuple[Floats, list[int]]:
    """codes [K, T] as a stream -> wav [N], and the samples at which one decode gives way to the
    next."""
    step = setting.chunk * backend.bundle.model.group_size
    decoder, parts = setting.open(backend), []
    try:
        for start in range(0, codes.shape[1], step):
            parts.append(decoder.push(codes[:, start : start + step]))
        parts.append(decoder.finish())
    finally:
        decoder.close()
    streamed = Streamed.of(parts)
    return streamed.wav, streamed.seams.tolist()


def seam_error(wav: Floats, whole: Floats, seams: Sequence[int], rate: int) -> float | None:
    """Energy of the difference within 10 ms of the seams over that elsewhere, in dB, per sample.

    0 says that seams differ from the whole decode as much as all the rest. None without seams.
    """
    near = np.zeros(len(wav), bool)
    reach = int(SEAM_SECONDS * rate)
    for seam in seams:
        near[max(0, seam - reach) : seam + reach] = True
    energy = np.square(wav.astype(np.float64) - whole)
    if not near.any() or near.all() or not energy[~near].any():
        return None
    return float(10 * np.log10(max(energy[near].mean(), 1e-30) / energy[~near].mean()))


def mel_distance(backend: AudioPieces, wav: Floats, whole: Floats) -> float:
    """Mean absolute difference of the log-mels where there is sound."""
    ours, theirs = backend.mel(wav), backend.mel(whole)
    loud = theirs > QUIET
    return float(np.abs(ours - theirs)[loud].mean()) if loud.any() else 0.0

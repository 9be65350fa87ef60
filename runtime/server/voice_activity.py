"""Where in a recording somebody speaks, by its energy.

Small, and no model: noise as loud as speech is taken for speech.
"""

from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Floats

FRAME_SECONDS = 0.02
_FLOOR_DB, _CEILING_DB = -65.0, -30.0  # what the noise is taken to be at least, and at most
_FIRST_DB = -50.0  # and before anything was heard
_RISE_DB = 0.02  # a frame: how fast the floor follows noise that grows
_ONSET = 3  # frames of speech, among the last five, that begin it
_RECENT = 5


@dataclass(frozen=True)
class Spoken:
    """A stretch of speech, in samples from the start of the stream."""

    start: int
    stop: int | None  # None while it goes on


class VoiceActivity:
    """The begin and the end of speech in a stream.

    `threshold`, 0 to 1, says how far above the noise speech must be: 6 to 24 dB. `silence` seconds
    without speech end it.
    """

    def __init__(self, rate: int, *, threshold: float = 0.5, silence: float = 0.5) -> None:
        self._frame = round(rate * FRAME_SECONDS)
        self._above = 6.0 + 18.0 * threshold  # dB
        self._quiet_frames = max(1, round(silence / FRAME_SECONDS))
        self._rest = np.zeros(0, np.float32)
        self._at = 0  # samples that were looked at
        self._noise = _FIRST_DB
        self._recent: list[bool] = []
        self._start: int | None = None
        self._last = 0  # sample after the last frame of speech

    @property
    def speaking(self) -> bool:
        """Whether speech has begun and not ended."""
        return self._start is not None

    def feed(self, wav: Floats) -> list[Spoken]:
        """wav [N] -> what begins (stop None) and what ends in it, in order."""
        wav = np.concatenate((self._rest, wav))
        count = len(wav) // self._frame
        frames, self._rest = wav[: count * self._frame], wav[count * self._frame :]
        found = []
        for frame in frames.reshape(count, self._frame):
            if (spoken := self._look(frame)) is not None:
                found.append(spoken)
        return found

    def reset(self) -> None:
        """Forget that somebody is speaking; the noise stays known."""
        self._start, self._recent = None, []

    def _look(self, frame: Floats) -> Spoken | None:
        level = 10 * np.log10(float(np.mean(frame.astype(np.float64) ** 2)) + 1e-12)
        voiced = level > self._noise + self._above
        follows = level if level < self._noise else self._noise + _RISE_DB
        self._noise = float(np.clip(follows, _FLOOR_DB, _CEILING_DB))
        begin, self._at = self._at, self._at + self._frame
        self._recent = [*self._recent, voiced][-_RECENT:]
        if voiced:
            self._last = self._at
        if self._start is None:
            if sum(self._recent) < _ONSET:
                return None
            self._start = begin - (len(self._recent) - 1) * self._frame
            return Spoken(self._start, None)
        if self._at - self._last < self._quiet_frames * self._frame:
            return None
        spoken, self._start = Spoken(self._start, self._last), None
        self._recent = []
        return spoken


def stretches(wav: Floats, rate: int, *, silence: float = 0.6) -> list[Spoken]:
    """All speech of a recording; the whole of it if none is found."""
    activity = VoiceActivity(rate, silence=silence)
    found = activity.feed(wav)
    spoken = [s for s in found if s.stop is not None]
    if found and found[-1].stop is None:
        spoken.append(Spoken(found[-1].start, len(wav)))
    return spoken or [Spoken(0, len(wav))]

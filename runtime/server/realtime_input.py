"""The audio that a realtime client sends, and the turns that are found in it."""

from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.realtime_audio import Heard
from mimo_edge.runtime.server.realtime_config import Session

_TAIL = 0.2  # seconds after the end of speech that belong to it
_LEAST = 0.1  # seconds of a turn


@dataclass(frozen=True, eq=False)
class Turn:
    """What was found: speech that begins (no wav yet), or that has ended."""

    at: float  # seconds since the session's first sample
    wav: Floats | None = None  # [N]


class InputBuffer:
    """Collects audio. With a detector it keeps only what may belong to a turn."""

    def __init__(self, session: Session, rate: int, max_seconds: float) -> None:
        self._rate, self._most = rate, round(max_seconds * rate)
        self._memory = np.zeros(rate, np.float32)  # it grows; the sound lies at its start
        self._count = 0
        self._format = ""
        self._first = 0  # number of the first sample that is kept
        self._start: int | None = None  # of the turn that goes on
        self.configure(session)

    def configure(self, session: Session) -> None:
        """Take over settings; speech that goes on is looked for anew."""
        form = session.audio.input.format.type
        if form != self._format:
            self._format, self._heard = form, Heard(form, self._rate)
        self._activity, self._padding = session.activity(self._rate), session.padding
        self._offset = self._first + len(self._wav)  # where the detector begins to count
        self._start = None

    @property
    def seconds(self) -> float:
        """What is there."""
        return len(self._wav) / self._rate

    @property
    def _wav(self) -> Floats:
        return self._memory[: self._count]

    def _take_in(self, wav: Floats) -> None:
        count = self._count + len(wav)
        if count > len(self._memory):
            grown = np.zeros(2 * count, np.float32)
            grown[: self._count] = self._wav
            self._memory = grown
        self._memory[self._count : count] = wav
        self._count = count

    def append(self, data: bytes) -> list[Turn]:
        """Sound in the session's format -> the turns that begin and end with it. Raises
        RequestError."""
        wav = self._heard.feed(data)
        if self._activity is None and len(self._wav) + len(wav) > self._most:
            self.clear()
            raise RequestError(
                f"The buffer holds {self._most / self._rate:g} s at most, and was cleared; commit "
                "earlier.",
                code="input_audio_buffer_full",
            )
        self._take_in(wav)
        return self._look(wav) if self._activity is not None else []

    def take(self) -> Floats:
        """All of it, as a turn. Raises RequestError if that is less than 100 ms."""
        self._take_in(self._heard.finish())
        if self.seconds < _LEAST:
            raise RequestError(
                f"The buffer holds {1000 * self.seconds:.0f} ms of audio and needs 100 ms.",
                code="input_audio_buffer_commit_empty",
            )
        wav = self._wav.copy()
        self.clear()
        return wav

    def clear(self) -> None:
        """Throw away what is there."""
        self._keep_from(self._first + len(self._wav))
        self._start = None
        if self._activity is not None:
            self._activity.reset()

    def _look(self, wav: Floats) -> list[Turn]:
        assert self._activity is not None
        turns = []
        for spoken in self._activity.feed(wav):
            if spoken.stop is None:
                start = self._offset + spoken.start
                self._start = max(self._first, start - round(self._padding * self._rate))
                turns.append(Turn(start / self._rate))
            elif self._start is not None:
                turns.append(self._ended(self._offset + spoken.stop))
        end = self._first + len(self._wav)
        if self._start is not None and end - self._start >= self._most:  # nobody speaks so long
            self._activity.reset()
            turns.append(self._ended(end))
        if self._start is None:
            self._keep_from(end - round((self._padding + _TAIL) * self._rate))
        return turns

    def _ended(self, stop: int) -> Turn:
        assert self._start is not None
        begin = self._start - self._first
        end = min(len(self._wav), stop + round(_TAIL * self._rate) - self._first)
        wav, self._start = self._wav[begin:end].copy(), None
        self._keep_from(self._first + end)
        return Turn(stop / self._rate, wav)

    def _keep_from(self, sample: int) -> None:
        dropped = max(0, sample - self._first)
        left = self._wav[dropped:].copy()
        self._first, self._count = self._first + min(dropped, self._count), len(left)
        if not self._count:  # what a long turn has taken goes back
            self._memory = np.zeros(self._rate, np.float32)
        self._wav[:] = left

"""A transcription with times: cues, and how they are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mimo_edge.runtime.audio.read import MIN_SAMPLES
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.server.voice_activity import stretches

_LONGEST = 30.0  # seconds of one cue
_MARGIN = 0.3  # seconds of quiet that are left around speech


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a recording that is transcribed by itself. Seconds."""

    start: float
    stop: float
    wav: Floats


@dataclass(frozen=True)
class Cue:
    """What is said from `start` to `stop`, in seconds."""

    start: float
    stop: float
    text: str


def pieces(wav: Floats, rate: int) -> list[Piece]:
    """A recording cut in its pauses: the model gives no times, the pauses do.

    Little of a pause is left around each part, and one without pauses is left as it is.
    """
    spoken = [(s.start, len(wav) if s.stop is None else s.stop) for s in stretches(wav, rate)]
    margin = round(_MARGIN * rate)
    middles = [(before[1] + after[0]) // 2 for before, after in pairwise(spoken)]
    edges = [0, *middles, len(wav)]
    cut = []
    for (start, stop), first, last in zip(spoken, edges[:-1], edges[1:], strict=True):
        if middles:
            first, last = max(first, start - margin), min(last, stop + margin)
        parts = max(1, -(-(last - first) // round(_LONGEST * rate)))  # speech without a pause
        size = -(-(last - first) // parts)
        for at in range(first, last, size):
            end = min(at + size, last)
            if end - at >= MIN_SAMPLES:
                cut.append(Piece(max(start, at) / rate, min(stop, end) / rate, wav[at:end]))
    return cut


def srt(cues: Sequence[Cue]) -> str:
    """SubRip."""
    return "".join(
        f"{n}\n{_time(c.start, ',')} --> {_time(c.stop, ',')}\n{c.text}\n\n"
        for n, c in enumerate(cues, start=1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT."""
    body = "".join(f"{_time(c.start, '.')} --> {_time(c.stop, '.')}\n{c.text}\n\n" for c in cues)
    return f"WEBVTT\n\n{body}"


def verbose(cues: Sequence[Cue], seconds: float, language: str) -> dict[str, Any]:
    """OpenAI's verbose_json. What the model does not give is not there."""
    return {
        "task": "transcribe",
        "language": language,
        "duration": seconds,
        "text": " ".join(cue.text for cue in cues),
        "segments": [
            {"id": n, "start": cue.start, "end": cue.stop, "text": cue.text}
            for n, cue in enumerate(cues)
        ],
    }


def _time(seconds: float, point: str) -> str:
    whole, milli = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milli:03}"

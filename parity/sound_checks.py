"""How the speech of a build sounds, as checks of the report: what listeners would say of it, and
whether it is the model's voice. Words apart, which `word_checks` counts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from mimo_edge.parity.judge import Check
from mimo_edge.parity.sound_quality import Opinion, Voice
from mimo_edge.parity.speech_score import Verdict
from mimo_edge.runtime.backends.base import Floats

MARKS, LIKENESS, DEVIATIONS = 0.2, 0.05, 2.0


@dataclass(frozen=True)
class _About:
    name: str
    title: str
    unit: str
    reason: str


OPINION = _About(
    "sound_opinion",
    "what listeners would say of what it speaks, from 1 to 5 (DNSMOS P.835)",
    "of 5",
    f"{MARKS:g} less than the model's own mean, or {DEVIATIONS:g} of its standard errors if that "
    "is more: marks of one voice differ from text to text",
)
VOICE = _About(
    "sound_voice",
    "likeness of its voice to the model's, up to 1 (GE2E)",
    "of 1",
    f"{LIKENESS:g} less than the model's own utterances are like their mean",
)


@dataclass
class Heard:
    """What a side spoke, as two networks hear it: a mark from 1 to 5 and a voice [256] each."""

    opinion: Opinion = field(default_factory=Opinion)
    voice: Voice = field(default_factory=Voice)
    marks: list[float] = field(default_factory=list)
    voices: list[Floats] = field(default_factory=list)

    def listen(self, verdicts: Iterable[Verdict], rate: int) -> Iterator[Verdict]:
        """Hear those that have a sound, and pass all on."""
        for verdict in verdicts:
            if verdict.wav is not None:
                self.marks.append(self.opinion.of(verdict.wav, rate))
                self.voices.append(self.voice.of(verdict.wav, rate))
            yield verdict


def sound_checks(heard: Heard, own: Heard | None) -> list[Check]:
    """Judged by the model's own; without it the opinion is measured and not judged."""
    if not heard.marks:
        return []
    if own is None or not own.marks:
        return [_check(OPINION, heard, float(np.mean(heard.marks)), None)]
    error = float(np.std(own.marks)) / len(own.marks) ** 0.5
    least = float(np.mean(own.marks)) - max(MARKS, DEVIATIONS * error)
    mean = np.mean(own.voices, axis=0)
    mean /= np.linalg.norm(mean)
    like, itself = (float(np.mean(np.stack(side.voices) @ mean)) for side in (heard, own))
    return [
        _check(OPINION, heard, float(np.mean(heard.marks)), least),
        _check(VOICE, heard, like, itself - LIKENESS),
    ]


def _check(about: _About, heard: Heard, value: float, limit: float | None) -> Check:
    return Check(
        name=about.name,
        stage="speech",
        title=about.title,
        value=value,
        unit=about.unit,
        better="higher",
        limit=limit,
        passed=None if limit is None else value >= limit,
        reason=about.reason,
        count=len(heard.marks),
    )

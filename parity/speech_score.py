"""How well a bundle hears and speaks, in word errors: what a quantised build is judged by.

A set of utterances is a folder with `utterances.json`, an object of three lists:

    asr       {"audio": file, "text": what is said}         transcribed
    tts       text                                         spoken, and heard back by the same bundle
    dialogue  {"audio": file, "answer": the right answer}    answered with speech, heard back
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.parity.word_errors import WordErrors, words
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.errors import MALFORMED, InputError
from mimo_edge.runtime.bundle.files import read_text
from mimo_edge.runtime.chat.conversation import Audio
from mimo_edge.runtime.generation.generation import Generation, Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

UTTERANCES = "utterances.json"
TASKS = ("asr", "tts", "dialogue")
LONGEST = 96  # patches of an answer: 15 seconds of speech. What is longer has gone astray


@dataclass(frozen=True)
class Streaming:
    """How speech is decoded while it comes; see `Generation.stream`."""

    kind: str | None = None
    lookahead: int | None = None
    left: int | None = None
    right: int | None = None

    def speak(self, generation: Generation) -> Result:
        """All of an answer."""
        *_, last = generation.stream(
            kind=self.kind, lookahead=self.lookahead, left=self.left, right=self.right
        )
        assert last.result is not None
        return last.result


@dataclass(frozen=True)
class Utterance:
    """Speech, and the text that belongs to it: what is said, or the right answer to it."""

    audio: Audio
    text: str


@dataclass(frozen=True)
class UtteranceSet:
    """What a bundle is judged on."""

    asr: tuple[Utterance, ...] = ()
    tts: tuple[str, ...] = ()
    dialogue: tuple[Utterance, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> "UtteranceSet":
        """Read a folder. Raises InputError if it is not as this module says."""
        path = folder / UTTERANCES
        try:
            raw = json.loads(read_text(path))
            found = cls(
                tuple(Utterance(folder / u["audio"], _text(u["text"])) for u in raw["asr"]),
                tuple(map(_text, _list(raw["tts"]))),
                tuple(Utterance(folder / u["audio"], _text(u["answer"])) for u in raw["dialogue"]),
            )
        except FileNotFoundError as error:
            raise InputError(
                f"{path} is not there. A set of utterances is a folder with that file; "
                "assets/utterances is one."
            ) from error
        except MALFORMED as error:
            raise InputError(
                f"{path} is not a set of utterances ({type(error).__name__}: {error}). It needs "
                '"asr": [{"audio", "text"}], "tts": [text] and "dialogue": [{"audio", "answer"}].'
            ) from error
        if not (found.asr or found.tts or found.dialogue):
            raise InputError(f"{path} holds no utterance: give at least one")
        return found

    def said(self) -> dict[str, WordErrors]:
        """Task -> the words that there are to hear, as if none had been heard."""
        texts = {
            "asr": [utterance.text for utterance in self.asr],
            "tts": self.tts,
            "dialogue": [utterance.text for utterance in self.dialogue],
        }
        counts = {task: WordErrors() for task, wanted in texts.items() if wanted}
        for task, errors in counts.items():
            for text in texts[task]:
                errors.add("", text)
        return counts


@dataclass(frozen=True)
class Verdict:
    """One utterance judged."""

    task: str  # "asr", "tts" or "dialogue"
    wanted: str
    heard: str  # the transcript; of the bundle's own sound if it spoke
    edits: int
    result: Result | None = None  # what it spoke

    @property
    def wav(self) -> Floats | None:
        """The sound that it made, [N]; None if it was not to speak, or did not."""
        return None if self.result is None else _sound(self.result)


class Judge:
    """Puts a bundle to its tasks. Sampling is that of the presets, utterance i draws by seed
    `first` + i.

    With `streaming`, speech is decoded as a stream of that setting, else whole.
    """

    def __init__(
        self, model: MimoAudio, streaming: Streaming | None = None, first: int = 0
    ) -> None:
        self.model, self.streaming, self.first = model, streaming, first

    def asr(self, utterances: Iterable[Utterance], n_q: int | None = None) -> Iterator[Verdict]:
        """Transcribe. With n_q, what the codec makes of the first n_q codebooks of each."""
        for seed, utterance in enumerate(utterances, self.first):
            audio = utterance.audio if n_q is None else self.reconstruct(utterance.audio, n_q)
            yield self._verdict("asr", self.transcribe(audio, seed), utterance.text)

    def tts(self, texts: Iterable[str]) -> Iterator[Verdict]:
        """Speak, and listen to it."""
        for seed, text in enumerate(texts, self.first):
            options = Options(seed=seed, max_new=LONGEST)
            yield self._heard_back("tts", self.model.tts(text, options=options), text)

    def dialogue(self, utterances: Iterable[Utterance]) -> Iterator[Verdict]:
        """Ask aloud, and listen to the spoken answer."""
        for seed, utterance in enumerate(utterances, self.first):
            options = Options(seed=seed, max_new=LONGEST)
            generation = self.model.dialogue(utterance.audio, options=options)
            yield self._heard_back("dialogue", generation, utterance.text)

    def all(self, utterances: UtteranceSet) -> Iterator[Verdict]:
        """Every utterance of a set."""
        for task in TASKS:
            yield from self.task(task, utterances)

    def task(self, task: str, utterances: UtteranceSet) -> Iterator[Verdict]:
        """Every utterance of a set for one of TASKS."""
        judged: Iterator[Verdict] = getattr(self, task)(getattr(utterances, task))
        return judged

    def transcribe(self, audio: Audio, seed: int = 0) -> str:
        """What is said."""
        return self.model.asr(audio, Options(seed=seed, max_new=LONGEST)).result().answer

    def reconstruct(self, audio: Audio, n_q: int) -> Floats:
        """Audio -> wav [N] from the first n_q codebooks of its codes."""
        codes: Ints = self.model.encode(audio)
        return codec.decode(self.model.backend, codes[:n_q])

    def _heard_back(self, task: str, generation: Generation, wanted: str) -> Verdict:
        streaming = self.streaming
        result = generation.result() if streaming is None else streaming.speak(generation)
        wav = _sound(result)
        heard = "" if wav is None else self.transcribe(wav)
        return self._verdict(task, heard, wanted, result)

    @staticmethod
    def _verdict(task: str, heard: str, wanted: str, result: Result | None = None) -> Verdict:
        return Verdict(task, wanted, heard, WordErrors().add(heard, wanted), result)


def _sound(result: Result) -> Floats | None:
    return result.wav if result.wav is not None and len(result.wav) else None


def _text(value: object) -> str:
    if not isinstance(value, str) or not words(value):
        raise TypeError(f"a text with words is needed, not {value!r}")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, not {value!r}")
    return value


def totals(verdicts: Iterable[Verdict]) -> dict[str, WordErrors]:
    """Task -> its word errors."""
    found: dict[str, WordErrors] = {}
    for verdict in verdicts:
        found.setdefault(verdict.task, WordErrors()).add(verdict.heard, verdict.wanted)
    return found

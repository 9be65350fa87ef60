"""The conversation of a realtime session: what was said, and how the next answer is prepared."""

from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.generation import Generation, Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.realtime_config import Session
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import voice_name


@dataclass(frozen=True, eq=False)
class Said:
    """A user's item that is not answered yet: text or sound."""

    id: str
    text: str | None = None
    wav: Floats | None = None  # [N]


@dataclass(frozen=True, eq=False)
class Answered:
    """The last answer, in the history."""

    id: str
    start: int  # patches of the history before it


class Conversation:
    """The history is a grid, as the model has read and written it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._history: Grid | None = None
        self._waiting: list[Said] = []
        self._answered: Answered | None = None

    def add(self, said: Said) -> None:
        """A further item of the user."""
        self._waiting.append(said)

    def remove(self, item_id: str) -> None:
        """Take back an item that is not answered yet. Raises RequestError."""
        kept = [said for said in self._waiting if said.id != item_id]
        if len(kept) == len(self._waiting):
            raise RequestError(
                "Only items that are not answered yet can be deleted.",
                code="item_not_found",
                param="item_id",
            )
        self._waiting = kept

    def prepare(self, session: Session, seed: int) -> Generation:
        """The answer to what waits; encodes sound, so call it in a thread. Raises RequestError."""
        waiting, model = self._waiting, self._service.model
        words = "\n".join(said.text for said in waiting if said.text is not None)
        sounds = [said.wav for said in waiting if said.wav is not None]
        if not waiting:
            raise RequestError("There is nothing to answer: the user has said nothing since.")
        if words and sounds:
            raise RequestError("Text and speech cannot be answered at once; send one of them.")
        options = self._options(session, seed)
        if words and session.speaks:
            raise RequestError(
                'Text is answered in text: set output_modalities to ["text"], and let '
                "/v1/audio/speech read the answer aloud.",
                param="output_modalities",
            )
        if words:
            if session.instructions and self._history is None:
                words = f"{session.instructions}\n\n{words}"
            return model.chat(words, history=self._history, options=options)
        codes = model.encode(np.concatenate(sounds))
        if not session.speaks:
            return model.speech_to_text(codes, history=self._history, options=options)
        return model.dialogue(
            codes,
            system_prompt=session.instructions or None,
            voice=self._voice(session),
            history=self._history,
            options=options,
        )

    def answer(self, item_id: str, generation: Generation, result: Result) -> None:
        """An answer was given."""
        group = self._service.model.layout.group_size
        self._waiting = []
        self._history = result.history
        self._answered = Answered(item_id, generation.request.prompt.shape[1] // group)

    def truncate(self, item_id: str, seconds: float) -> None:
        """Forget what of the last answer was not heard. Raises RequestError."""
        if self._answered is None or self._answered.id != item_id or self._history is None:
            raise RequestError(
                "Only the last answer can be truncated.", code="item_not_found", param="item_id"
            )
        model = self._service.model
        spec = model.backend.bundle.model
        patch = spec.group_size * spec.samples_per_frame / spec.sampling_rate  # seconds
        self._history = cut_answer(
            self._history,
            self._answered.start,
            round(seconds / patch),
            empty=model.tokenizer.special.empty,
            end=model.tokenizer.special.eostm,
            empty_codes=model.layout.empty_codes,
            group_size=model.layout.group_size,
        )

    def _voice(self, session: Session) -> Ints | None:
        name = voice_name(session.audio.output.voice)
        return self._service.voices.get(name, "session.audio.output.voice")

    def _options(self, session: Session, seed: int) -> Options:
        most = self._service.limits.patches
        asked = session.max_output_tokens
        return Options(seed=seed, max_new=most if asked == "inf" else min(asked, most))


def cut_answer(
    history: Grid,
    start: int,
    heard: int,
    *,
    empty: int,
    end: int,
    empty_codes: tuple[int, ...],
    group_size: int,
) -> Grid:
    """A history [1 + K, P * G] whose answer, from patch `start`, ends after `heard` patches of
    speech, with an end of speech behind them. One with no more speech than that is as it was."""
    text = history[0, ::group_size]  # [P]
    (speech,) = np.nonzero(text[start:] == empty)
    if len(speech) <= heard:
        return history
    kept = start + int(speech[heard])
    last = np.repeat(np.array((end, *empty_codes))[:, None], group_size, axis=1)
    return np.concatenate((history[:, : kept * group_size], last), axis=1)

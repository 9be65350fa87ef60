"""The conversation of a realtime session: what was said, and how the next answer is prepared."""

from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.chat.segments import Grid, PromptLayout
from mimo_edge.runtime.chat.text_tokenizer import IncrementalDecoder, TextTokenizer
from mimo_edge.runtime.generation.generation import Generation, Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.prepared import Prepared
from mimo_edge.runtime.server.reader import reader
from mimo_edge.runtime.server.realtime_config import Session
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import voice_name

_VOICE = "session.audio.output.voice"


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
    prepared: Prepared


class Conversation:
    """The history is a grid, as the model has read and written it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._history: Grid | None = None
        self._waiting: list[Said] = []
        self._answered: Answered | None = None
        self.last: str | None = None  # item

    def add(self, said: Said) -> None:
        """A further item of the user."""
        self._waiting.append(said)
        self.last = said.id

    def find(self, item_id: str) -> Said:
        """An item that is not answered yet. Raises RequestError."""
        for said in self._waiting:
            if said.id == item_id:
                return said
        raise RequestError(
            "Only items of the user that are not answered yet can be named.",
            code="item_not_found",
            param="item_id",
        )

    def remove(self, item_id: str) -> None:
        """Take back an item that is not answered yet. Raises RequestError."""
        self._waiting.remove(self.find(item_id))

    def aside(self, asked: list[Said] | None) -> "Conversation":
        """One that this one never learns of: a copy, or, with items, one of these alone."""
        other = Conversation(self._service)
        other._waiting = [*self._waiting] if asked is None else asked
        other._history = self._history if asked is None else None
        return other

    def prepare(self, session: Session, seed: int) -> Prepared:
        """The answer to what waits; encodes sound, so call it in a thread. Raises RequestError."""
        waiting, model = self._waiting, self._service.model
        words = "\n".join(said.text for said in waiting if said.text is not None)
        sounds = [said.wav for said in waiting if said.wav is not None]
        if not waiting:
            raise RequestError("There is nothing to answer: the user has said nothing since.")
        options = self._options(session, seed)
        voice = voice_name(session.audio.output.voice)
        if words:
            say = None
            if session.speaks:
                say = reader(self._service, options, voice, session.style, _VOICE)
            if session.instructions and self._history is None:
                words = f"{session.instructions}\n\n{words}"
            return Prepared(self._written(words, sounds, options), say)
        codes = model.encode(np.concatenate(sounds))
        if not session.speaks:
            return Prepared(model.speech_to_text(codes, history=self._history, options=options))
        return Prepared(
            model.dialogue(
                codes,
                system_prompt=session.instructions or None,
                voice=self._service.voices.get(voice, _VOICE),
                history=self._history,
                options=options,
            )
        )

    def _written(self, words: str, sounds: list[Floats], options: Options) -> Generation:
        """A question in text, maybe about sounds."""
        model, history = self._service.model, self._history
        if not sounds:
            return model.chat(words, history=history, options=options)
        if history is not None:
            raise RequestError(
                "Text and speech together can only begin a conversation: later the model takes one "
                "of them at a time. Delete one item, or ask beside the conversation."
            )
        return model.understand(np.concatenate(sounds), words, options=options)

    def answer(self, item_id: str, prepared: Prepared, result: Result) -> None:
        """An answer was given."""
        group = self._service.model.layout.group_size
        start = prepared.generation.request.prompt.shape[1] // group
        self._waiting, self._history = [], result.history
        self._answered = Answered(item_id, start, prepared)
        self.last = item_id

    def truncate(self, item_id: str, seconds: float) -> None:
        """Forget what of the last answer was not heard. Raises RequestError."""
        answered, history, model = self._answered, self._history, self._service.model
        if answered is None or answered.id != item_id or history is None:
            raise RequestError(
                "Only the last answer can be truncated.", code="item_not_found", param="item_id"
            )
        if answered.prepared.read_aloud:
            heard = answered.prepared.heard(round(seconds * model.sampling_rate))
            self._history = cut_text(history, answered.start, heard, model.tokenizer, model.layout)
            return
        spec = model.backend.bundle.model
        patch = spec.group_size * spec.samples_per_frame / spec.sampling_rate  # seconds
        self._history = cut_answer(
            history,
            answered.start,
            round(seconds / patch),
            empty=model.tokenizer.special.empty,
            end=model.tokenizer.special.eostm,
            empty_codes=model.layout.empty_codes,
            group_size=model.layout.group_size,
        )

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


def cut_text(
    history: Grid, start: int, characters: int, tokenizer: TextTokenizer, layout: PromptLayout
) -> Grid:
    """A history whose written answer, from patch `start`, ends after that many characters, with
    what ended it behind them. One with no more text than that is as it was."""
    words, said = IncrementalDecoder(tokenizer), 0
    ids = history[0, :: layout.group_size]  # [P]
    for patch in range(start, len(ids) - 1):
        if said >= characters:
            kept = history[:, : patch * layout.group_size]
            return np.concatenate((kept, history[:, -layout.group_size :]), axis=1)
        if ids[patch] not in tokenizer.special.speech_tokens:
            said += len(words.feed(int(ids[patch])))
    return history

"""The prompt of each task as a grid [1 + K, P * G] for the language model.

Every string below is tokenised by itself and where one ends matters: joined, neighbours such as
two line breaks would merge into other tokens than the model was trained on.

Shapes: K codebooks, T frames, P patches, G group_size, as in `mimo_edge.runtime.chat.segments`.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from mimo_edge.runtime.bundle.errors import InputError, TextError
from mimo_edge.runtime.chat.segments import (
    Codes,
    Grid,
    PromptLayout,
    audio_segment,
    pad_codes,
    streaming_segment,
    text_segment,
)
from mimo_edge.runtime.chat.templates import asr_template, tts_template
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer

_SYSTEM = "<|im_start|>system\n"
_USER = "<|im_start|>user\n"
_ASSISTANT = "<|im_start|>assistant\n"
_END = "<|im_end|>\n"
_THINK = "<think>\n"
_NO_THOUGHT = "<think>\n\n</think>\n"
_SPEAK = _ASSISTANT + "<|sostm|>"

_TTS_STYLE = "你需要根据指定的风格指令和文本内容来生成语音。"
_TTS_STYLE_AND_VOICE = (
    "你需要根据指定的风格指令和文本内容来生成和语音prompt具有相同音色的语音。你的音色应该是："
)
_DIALOGUE_VOICE = "Your voice should be:"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Words:
    """Text that a user gave, as one text segment with what the prompt puts around it."""

    text: str
    before: str = ""
    after: str = ""


Part = str | Words | Grid  # a string is one text segment of ours, a grid is a finished segment


@dataclass(frozen=True, eq=False)
class Turn:
    """One turn of a conversation; which of text and codes [K, T] it needs is said by each task."""

    role: str  # "user" or "assistant"
    text: str | None = None
    codes: Codes | None = None


@dataclass(frozen=True, eq=False)
class Example:
    """One worked example for `in_context`: speech in, speech out, and what the latter says."""

    input_codes: Codes  # [K, T]
    output_codes: Codes  # [K, T]
    transcript: str


class PromptBuilder:
    """Builds prompts. Codes are [K, T], padded to whole patches by repeating the last frame.

    With `special` False, special tokens in what a user wrote are text: "<|im_end|>" in a question
    does not end the turn. Those of the prompt itself are special in any case. Upstream's is True.

    All methods return int64 [1 + K, P * G]; they raise InputError for codes or turns that cannot be
    used and TextError for text that cannot.
    """

    def __init__(
        self, tokenizer: TextTokenizer, layout: PromptLayout, *, special: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.special = special

    def asr(
        self,
        codes: Codes,
        *,
        rng: random.Random,
        template: str | None = None,
        language: str | None = None,
        tag: str = "",
    ) -> Grid:
        """Transcribe speech. The instruction, in `language` if one is named, is drawn from `rng`
        unless `template` gives it; `tag` opens the answer."""
        request = Words(template or asr_template(rng, language))
        answer = [_ASSISTANT, _NO_THOUGHT + tag]
        return self._join([_USER, self._audio(codes), request, _END, *answer])

    def tts(
        self,
        text: str,
        *,
        rng: random.Random,
        instruction: str | None = None,
        natural: bool = False,
        voice: Codes | None = None,
        template: str | None = None,
    ) -> Grid:
        """Read a text aloud.

        Plain: `text` alone. With `instruction`: in that style. `natural`: the text itself says what
        is spoken and how, so `instruction` is not used and no template is drawn. `voice`, codes of
        a voice to copy, is used in the last two only: the model knows no plain prompt with a voice.
        """
        request = _words(text, "text to read")
        if request.isupper() or request.islower():
            request = request.capitalize()  # as upstream, for text all in one case
        if not natural:
            request = f"{template or tts_template(text, rng)}: {request}"
            if instruction is None:
                return self._join([Words(request, _USER, _END), _SPEAK])
            request += f"({_words(instruction, 'instruction')})"
        style: list[Part] = [_TTS_STYLE]
        if voice is not None:
            style = [_TTS_STYLE_AND_VOICE, self._audio(voice, "voice")]
        return self._join(
            [_SYSTEM, *style, _END, Words(request, _USER, _END), f"{_ASSISTANT}{_THINK}"]
        )

    def understand(self, codes: Codes, question: str, *, thinking: bool = False) -> Grid:
        """Answer a question about speech or sound, in text."""
        asked = Words(_words(question, "question"))
        return self._join([_USER, self._audio(codes), asked, _END, *_answer(thinking)])

    def dialogue(
        self,
        codes: Codes,
        *,
        system_prompt: str | None = None,
        voice: Codes | None = None,
        continues: bool = False,
    ) -> Grid:
        """Answer speech with speech.

        `continues` makes a later turn of a conversation whose earlier turns the model has already
        read: those carry the system prompt and the voice, so both are left out.
        """
        if continues:
            system_prompt = voice = None
        turns = [Turn("user", codes=codes)]
        return self.dialogue_turns(turns, system_prompt=system_prompt, voice=voice)

    def dialogue_turns(
        self,
        turns: Sequence[Turn],
        *,
        system_prompt: str | None = None,
        voice: Codes | None = None,
    ) -> Grid:
        """Answer the last turn with speech. User turns need codes, assistant turns text and codes.

        The system prompt is part of turn 0, and so is left out if the assistant speaks first.
        """
        opening: list[Part] = []
        if voice is not None:
            opening = [_SYSTEM, _DIALOGUE_VOICE, self._audio(voice, "voice"), _END]

        def user(index: int, turn: Turn) -> list[Part]:
            briefing: list[Part] = []
            if system_prompt and index == 0:
                briefing = [Words(system_prompt), "\n\n"]
            return [*briefing, self._audio(turn.codes, f"turn {index} (user)")]

        def assistant(index: int, turn: Turn) -> list[Part]:
            return [self._spoken(turn.text, turn.codes, f"turn {index} (assistant)")]

        return self._join([*opening, *_conversation(turns, user, assistant), _SPEAK])

    def speech_to_text(self, codes: Codes, *, thinking: bool = False) -> Grid:
        """Answer speech with text."""
        return self.speech_to_text_turns([Turn("user", codes=codes)], thinking=thinking)

    def speech_to_text_turns(self, turns: Sequence[Turn], *, thinking: bool = False) -> Grid:
        """Answer the last turn with text. User turns need codes, assistant turns text."""

        def user(index: int, turn: Turn) -> list[Part]:
            return [self._audio(turn.codes, f"turn {index} (user)")]

        return self._join([*_conversation(turns, user, _written), *_answer(thinking)])

    def chat(self, text: str, *, thinking: bool = False) -> Grid:
        """Answer text with text."""
        return self.chat_turns([Turn("user", text=text)], thinking=thinking)

    def chat_turns(self, turns: Sequence[Turn], *, thinking: bool = False) -> Grid:
        """Answer the last turn with text. All turns need text, user turns more than blanks."""

        def user(index: int, turn: Turn) -> list[Part]:
            return [Words(_words(turn.text, f"turn {index} (user): text"))]

        return self._join([*_conversation(turns, user, _written), *_answer(thinking)])

    def in_context(self, instruction: str, examples: Sequence[Example], codes: Codes) -> Grid:
        """Speech to speech as the examples show it; meant for the base model."""
        parts: list[Part] = [Words(_words(instruction, "instruction"), "[Int]:", "\n")]
        for index, example in enumerate(examples):
            name = f"example {index}"
            spoken = self._spoken(example.transcript, example.output_codes, name)
            parts += [self._audio(example.input_codes, name), "\n", spoken, " \n\n"]
        return self._join([*parts, self._audio(codes), "\n", "<|sostm|>"])

    def _join(self, parts: Iterable[Part]) -> Grid:
        def segment(part: Part) -> Grid:
            if isinstance(part, np.ndarray):
                return part
            return text_segment(self._ids(part), self.layout)

        return np.concatenate([segment(part) for part in parts], axis=1)

    def _ids(self, part: str | Words) -> list[int]:
        if isinstance(part, str):
            return self.tokenizer.encode(part)
        if not isinstance(part.text, str):
            raise TextError(f"text must be a str, not {type(part.text).__name__}: decode it first")
        if self.special:
            return self.tokenizer.encode(part.before + part.text + part.after)
        return self.tokenizer.encode_between(part.before, part.text, part.after)

    def _audio(self, codes: Codes | None, name: str = "audio") -> Part:
        padded = pad_codes(_given(codes, name, "codes"), self.layout.group_size)
        if padded.shape[1] == 0:
            raise InputError(f"{name}: no frames; pass audio that is not empty")
        return audio_segment(padded, self.layout, self.tokenizer.special)

    def _spoken(self, text: str | None, codes: Codes | None, name: str) -> Part:
        padded = pad_codes(_given(codes, name, "codes"), self.layout.group_size)
        text_ids = self._ids(Words(_given(text, name, "text")))
        return streaming_segment(text_ids, padded, self.layout, self.tokenizer.special)


def _answer(thinking: bool) -> list[Part]:
    """The start of an answer in text; without thinking, the thought is there already and empty."""
    return [_ASSISTANT, _THINK if thinking else _NO_THOUGHT]


def _written(index: int, turn: Turn) -> list[Part]:
    """An assistant's turn that was text."""
    return [Words(_given(turn.text, f"turn {index} (assistant)", "text"))]


def _conversation(
    turns: Sequence[Turn],
    user: Callable[[int, Turn], list[Part]],
    assistant: Callable[[int, Turn], list[Part]],
) -> list[Part]:
    """All turns with their special tokens, `user` and `assistant` giving the inside of each."""
    parts: list[Part] = []
    for index, turn in enumerate(turns):
        if turn.role == "user":
            parts += [_USER, *user(index, turn), _END]
        elif turn.role == "assistant":
            parts += [_ASSISTANT, *assistant(index, turn), _END]
        else:
            raise InputError(f"turn {index}: role must be user or assistant, not {turn.role!r}")
    if not turns or turns[-1].role != "user":
        raise InputError(f"the last of {len(turns)} turns must be the user's; add what to answer")
    return parts


def _given(value: _T | None, name: str, field: str) -> _T:
    if value is None:
        raise InputError(f"{name}: {field} missing; this task needs it")
    return value


def _words(text: str | None, name: str) -> str:
    """`text`, if it is a string with something in it."""
    if not isinstance(text, str) or not text.strip():
        raise TextError(f"{name}: {text!r} has no words; pass a str that is not blank")
    return text

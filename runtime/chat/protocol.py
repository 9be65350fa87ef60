"""The prompt protocol as data, for programs that drive a bundle's graphs without this runtime.

It is what `PromptBuilder`, the presets and the text tokenizer do, written down by asking them: the
exporter puts it into bundle.json as `chat`, and docs/bundle.md says how to read it. This runtime
does not read it.
"""

from collections.abc import Iterable
from dataclasses import asdict
from random import Random
from typing import Any

import numpy as np
from mimo_edge.runtime.bundle.family import Member
from mimo_edge.runtime.chat import templates
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.chat.prompts import Example, Part, PromptBuilder, Turn, Words
from mimo_edge.runtime.chat.segments import RUN, Codes, Grid
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer

_CODES: Codes = np.zeros((0, 0), np.int64)
_TURNS = [
    Turn("user", "{turn 0}", _CODES),
    Turn("assistant", "{turn 1}", _CODES),
    Turn("user", "{turn 2}", _CODES),
]


class _Sound(str):
    """A part that is speech which the model hears, by its name."""


class _Speech(str):
    """A part that is text and its speech interleaved, by its name."""


class _Outline(PromptBuilder):
    """Makes a prompt's list of parts instead of its grid. `{name}` in a text is to be filled in."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def _join(self, parts: Iterable[Part]) -> Grid:
        self.parts = list(parts)
        return np.zeros((0, 0), np.int64)

    def _audio(self, codes: Codes | None, name: str = "audio") -> Part:
        return _Sound(name)

    def _spoken(self, text: str | None, codes: Codes | None, name: str) -> Part:
        return _Speech(name)


def protocol(tokenizer: TextTokenizer, member: Member) -> dict[str, Any]:
    """The section `chat` of bundle.json, of a model of the family."""

    def text(words: str) -> dict[str, Any]:
        """With its ids, unless something is yet to be filled in."""
        return {"text": words} if "{" in words else {"text": words, "ids": tokenizer.encode(words)}

    def as_json(part: Part) -> dict[str, Any]:
        if isinstance(part, _Sound):
            return {"audio": str(part)}
        if isinstance(part, _Speech):
            return {"spoken": str(part)}
        if isinstance(part, Words):
            return text(part.before + part.text + part.after)
        assert isinstance(part, str)
        return text(part)

    prompts = {
        task: {form: [as_json(part) for part in parts] for form, parts in forms.items()}
        for task, forms in _prompts().items()
    }
    assert prompts.keys() == PRESETS.keys()
    return {
        "special_ids": asdict(tokenizer.special),
        "text_run": RUN,
        "templates": {
            "asr": [text(t) for t in (*templates.ASR_ZH, *templates.ASR_EN)],
            "tts_zh": [text(t) for t in templates.TTS_ZH],
            "tts_en": [text(t) for t in templates.TTS_EN],
        },
        "tasks": {
            task: {
                "stop_ids": list(preset.stop_ids(tokenizer.special)),
                "speaks": preset.speaks,
                "text": asdict(preset.text),
                "audio": asdict(preset.audio),
                "prompts": prompts[task],
            }
            for task, preset in PRESETS.items()
            if not member.tasks or task in member.tasks
        },
        "language_tags": {name: text(tag) for name, tag in member.languages.items()},
        "piece_seconds": member.piece_seconds,
    }


def _prompts() -> dict[str, dict[str, list[Part]]]:
    """Task -> name of a form of its prompt -> the parts of it."""
    build, rng = _Outline(), Random(0)

    def taken(_: Grid) -> list[Part]:
        return build.parts

    def tts(style: str | None = None, natural: bool = False, voice: Codes | None = None) -> Grid:
        return build.tts(
            "{text}",
            rng=rng,
            template="{template}",
            instruction=style,
            natural=natural,
            voice=voice,
        )

    example = Example(_CODES, _CODES, "{example 0}")
    style, briefing = "{instruction}", "{system_prompt}"
    return {
        "asr": {"plain": taken(build.asr(_CODES, rng=rng, template="{template}"))},
        "tts": {
            "plain": taken(tts()),
            "instruction": taken(tts(style)),
            "instruction, voice": taken(tts(style, voice=_CODES)),
            "natural": taken(tts(natural=True)),
            "natural, voice": taken(tts(natural=True, voice=_CODES)),
        },
        "understand": {
            "plain": taken(build.understand(_CODES, "{question}")),
            "thinking": taken(build.understand(_CODES, "{question}", thinking=True)),
        },
        "dialogue": {
            "plain": taken(build.dialogue(_CODES)),
            "system prompt, voice": taken(
                build.dialogue(_CODES, system_prompt=briefing, voice=_CODES)
            ),
            "turns": taken(build.dialogue_turns(_TURNS)),
        },
        "speech-to-text": {
            "plain": taken(build.speech_to_text(_CODES)),
            "thinking": taken(build.speech_to_text(_CODES, thinking=True)),
            "turns": taken(build.speech_to_text_turns(_TURNS)),
        },
        "chat": {
            "plain": taken(build.chat("{text}")),
            "thinking": taken(build.chat("{text}", thinking=True)),
            "turns": taken(build.chat_turns(_TURNS)),
        },
        "in-context": {"one example": taken(build.in_context(style, [example], _CODES))},
    }

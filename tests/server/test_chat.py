"""Chat completions through OpenAI's client: text, sound in, sound out, streams."""

import base64
import dataclasses
from typing import Any

import numpy as np
import openai
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.chat.conversation import Message
from mimo_edge.runtime.options import Options

from tests.server.conftest import QUESTION, Serving

SOUND = {
    "type": "input_audio",
    "input_audio": {"data": base64.b64encode(QUESTION.read_bytes()).decode(), "format": "wav"},
}
SPOKEN = [{"role": "user", "content": [SOUND]}]
SPEAKS: Any = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
WRITTEN = [{"role": "user", "content": "What is four plus five?"}]


def create(client: openai.OpenAI, messages: Any, **more: Any) -> Any:
    return client.chat.completions.create(model="nano", messages=messages, seed=5, **more)


def test_text(shared: Serving, client: openai.OpenAI) -> None:
    wanted = shared.model.chat("What is four plus five?", options=Options(seed=5)).result()
    made = create(client, WRITTEN)
    assert made.choices[0].message.content == wanted.answer
    assert made.choices[0].finish_reason == ("stop" if wanted.stopped else "length")
    assert made.usage.completion_tokens == wanted.timings.patches
    chunks = [*create(client, WRITTEN, stream=True, stream_options={"include_usage": True})]
    said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(said) == wanted.answer and chunks[-1].usage == made.usage
    assert chunks[-2].choices[0].finish_reason == made.choices[0].finish_reason


def test_a_system_message_and_turns(shared: Serving, client: openai.OpenAI) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is two plus two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": [{"type": "text", "text": "And three plus three?"}]},
    ]
    said = [
        Message("user", "Be short.\n\nWhat is two plus two?"),
        Message("assistant", "Four."),
        Message("user", "And three plus three?"),
    ]
    wanted = shared.model.chat(said, options=Options(seed=5, max_new=20)).result()
    made = create(client, turns, max_tokens=20)
    assert made.choices[0].message.content == wanted.answer


def test_sound_is_answered_in_text(shared: Serving, client: openai.OpenAI) -> None:
    wanted = shared.model.speech_to_text(QUESTION, options=Options(seed=5)).result()
    assert create(client, SPOKEN).choices[0].message.content == wanted.answer


@pytest.mark.parametrize("thinking", [False, True])
def test_a_question_about_sound(shared: Serving, client: openai.OpenAI, thinking: bool) -> None:
    options = Options(seed=5, max_new=24)
    model = shared.model
    wanted = model.understand(
        QUESTION, "What is said?", thinking=thinking, options=options
    ).result()
    turn = {"role": "user", "content": [SOUND, {"type": "text", "text": "What is said?"}]}
    made = create(client, [turn], max_tokens=24, extra_body={"thinking": thinking})
    message = made.choices[0].message
    assert message.content == wanted.answer
    assert (getattr(message, "reasoning_content", None) or "") == wanted.thinking
    assert bool(wanted.thinking) == thinking, "the case should show something"


def test_sound_is_answered_with_sound(shared: Serving, client: openai.OpenAI) -> None:
    wanted = shared.model.dialogue(QUESTION, options=Options(seed=5)).result()
    audio = {"voice": "alloy", "format": "wav"}
    made = create(client, SPOKEN, modalities=["text", "audio"], audio=audio)
    message = made.choices[0].message
    assert message.content is None and message.audio.transcript == wanted.answer
    assert wanted.wav is not None
    heard = load_audio(base64.b64decode(message.audio.data))
    assert (pcm16(heard, "x") == pcm16(wanted.wav, "x")).all()

    again = [*SPOKEN, {"role": "assistant", "audio": {"id": message.audio.id}}, *SPOKEN]
    said = [Message("user", audio=QUESTION), Message("assistant", wanted.answer, wanted.codes)]
    options = Options(seed=5, max_new=16)
    next_turn = shared.model.dialogue([*said, said[0]], options=options).result()
    more = {"modalities": ["text", "audio"], "audio": audio, "max_tokens": 16}
    made = create(client, again, **more)
    assert made.choices[0].message.audio.transcript == next_turn.answer
    again[1] = {"role": "assistant", "audio": {"id": "audio_0"}}
    with pytest.raises(openai.BadRequestError, match="not known here any more"):
        create(client, again, **more)


def test_text_is_answered_with_sound(shared: Serving, client: openai.OpenAI) -> None:
    """Each sentence of the answer is read aloud; whole and streamed."""
    how, options = dataclasses.asdict(shared.service.streaming), Options(seed=5)
    wanted = shared.model.chat("What is four plus five?", options=options).result()
    calm = shared.model.tts(wanted.answer, instruction="calm", options=options)
    wav = pcm16(np.concatenate([event.wav for event in calm.stream(**how)]), "x")
    style = {"style": "calm"}
    message = create(client, WRITTEN, **SPEAKS, extra_body=style).choices[0].message
    assert message.audio.transcript == wanted.answer
    assert (pcm16(load_audio(base64.b64decode(message.audio.data)), "x") == wav).all()

    more = SPEAKS | {"audio": {"voice": "alloy", "format": "pcm16"}, "stream": True}
    chunks = [*create(client, WRITTEN, **more, extra_body=style)]
    deltas = [c.choices[0].delta.model_dump().get("audio") or {} for c in chunks]
    sound = b"".join(base64.b64decode(d.get("data") or "") for d in deltas)
    assert (np.frombuffer(sound, "<i2") == wav).all()
    assert "".join(d.get("transcript") or "" for d in deltas) == wanted.answer


def test_sound_is_streamed(shared: Serving, client: openai.OpenAI) -> None:
    how = shared.service.streaming
    generation = shared.model.dialogue(QUESTION, options=Options(seed=5))
    events = [*generation.stream(**dataclasses.asdict(how))]
    audio = {"voice": "alloy", "format": "pcm16"}
    more = {"modalities": ["text", "audio"], "audio": audio, "stream": True}
    chunks = [c.choices[0].delta.model_dump() for c in create(client, SPOKEN, **more)]
    deltas = [chunk["audio"] for chunk in chunks if chunk.get("audio")]
    sound = [base64.b64decode(d["data"]) for d in deltas if d.get("data")]
    assert len(sound) > 3 and len({d["id"] for d in deltas}) == 1
    wanted = pcm16(np.concatenate([event.wav for event in events]), "x")
    assert (np.frombuffer(b"".join(sound), "<i2") == wanted).all()
    assert "".join(d.get("transcript") or "" for d in deltas) == events[-1].result.answer
    assert deltas[-1]["expires_at"]


def test_examples(shared: Serving, client: openai.OpenAI) -> None:
    given = SOUND["input_audio"]
    shown = [{"input_audio": given, "output_audio": given, "transcript": "Two."}]
    turns = [{"role": "system", "content": "Say it again."}, *SPOKEN]
    more: Any = {"modalities": ["text", "audio"], "max_tokens": 8}
    more["audio"] = {"voice": "alloy", "format": "wav"}
    made = create(client, turns, **more, extra_body={"examples": shown})
    assert made.choices[0].message.audio.data
    with pytest.raises(openai.BadRequestError, match="Examples go with"):
        create(client, SPOKEN, **more, extra_body={"examples": shown})


@pytest.mark.parametrize(
    ("messages", "more", "word"),
    [
        ([], {}, "messages"),
        ([{"role": "assistant", "content": "Hello."}], {}, "last message"),
        ([{"role": "tool", "content": "x", "tool_call_id": "x"}], {}, "messages.0.role"),
        ([{"role": "user", "content": ""}], {}, "blank"),
        ([{"role": "user"}], {}, "empty"),
        (WRITTEN, {"n": 2}, "n is not offered"),
        (WRITTEN, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ([*SPOKEN, {"role": "assistant", "content": "a"}, *WRITTEN], SPEAKS, "as input_audio"),
        (WRITTEN, {"temperature": -1}, "temperature"),
        ([*SPOKEN, {"role": "assistant", "content": "a"}, *WRITTEN], {}, "mixed"),
    ],
)
def test_what_cannot_be_is_refused(
    client: openai.OpenAI, messages: Any, more: Any, word: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, messages, **more)
    assert isinstance(refused.value.body, dict) and word in refused.value.body["message"]


@pytest.mark.parametrize("data", ["!!", "////", base64.b64encode(b"RIFF").decode(), "../../x"])
def test_sound_that_is_none(client: openai.OpenAI, data: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, [{"role": "user", "content": [part]}])
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["param"] == "messages[0]"

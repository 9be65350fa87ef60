"""Level 3: the tasks, from audio and text to text and audio, against the golden pipeline."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.errors import ContextError, InputError
from mimo_edge.runtime.chat.answer import answer_text, split_answer
from mimo_edge.runtime.chat.conversation import Message
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.generation import Result
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request, Step, join_steps
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import Demonstration, MimoAudio

from tests import check
from tests.golden import Golden

GREEDY = Sampling(0.0)
CLIP = Path(__file__).parents[2] / "assets" / "clips" / "weather-question.flac"
SHORT = Options(max_new=8, seed=3)


@pytest.fixture(scope="module")
def model(backend: OrtBackend) -> MimoAudio:
    return MimoAudio(backend)


def new_patches(golden: Golden, name: str, prompt: Grid) -> int:
    group = golden.info["group_size"]
    return (golden.npz("pipeline.npz")[f"{name}.out"].shape[1] - prompt.shape[1]) // group


def test_asr_pipeline(golden: Golden, model: MimoAudio) -> None:
    arrays = golden.npz("pipeline.npz")
    prompt = arrays["asr.ids"]
    options = Options(text=GREEDY, audio=GREEDY, max_new=new_patches(golden, "asr", prompt), seed=3)
    generation = model.asr(arrays["wav24k"], options)
    check.equal(generation.request.prompt, prompt, "asr.ids")
    result = generation.result(upstream_drop_last=True)
    check.equal(result.history, arrays["asr.out"], "asr.out")
    assert result.text.encode() == arrays["asr.text_utf8"].tobytes()
    assert result.wav is None


def test_dialogue_pipeline(golden: Golden, model: MimoAudio) -> None:
    """Two turns: the second goes on from the first's history."""
    arrays = golden.npz("pipeline.npz")
    wav, prompt = arrays["wav24k"], arrays["dlg.ids"]
    count = new_patches(golden, "dlg", prompt)
    options = Options(text=GREEDY, audio=GREEDY, max_new=count, min_new=count - 1)
    generation = model.dialogue(wav, system_prompt="You are kind.", voice=wav, options=options)
    check.equal(generation.request.prompt, prompt, "dlg.ids")
    result = generation.result(upstream_drop_last=True)
    check.equal(result.history, arrays["dlg.out"], "dlg.out")
    assert result.wav is not None
    check.close(result.wav[None, None], arrays["dlg.wav"], tolerances.AUDIO, "dlg.wav")

    count = (arrays["dlg2.out"].shape[1] - arrays["dlg.out"].shape[1]) // golden.info["group_size"]
    count -= arrays["dlg2.ids"].shape[1] // golden.info["group_size"]
    options = Options(text=GREEDY, audio=GREEDY, max_new=count, min_new=count - 1)
    generation = model.dialogue(wav, history=result.history, options=options)
    check.equal(
        generation.request.prompt[:, result.history.shape[1] :], arrays["dlg2.ids"], "dlg2.ids"
    )
    check.equal(generation.result().history, arrays["dlg2.out"], "dlg2.out")


def test_post_cases(golden: Golden, model: MimoAudio) -> None:
    """Scripted answers: text, speech codes, and the audio they become."""
    arrays, layout, special = golden.npz("post.npz"), model.layout, model.tokenizer.special
    for name, case in golden.json("post.json").items():
        grid = arrays[f"{name}.generated"]
        answer = split_answer(grid, layout, special, stopped=False, upstream_drop_last=True)
        assert answer_text(answer.text_ids, model.tokenizer) == case["text"], name
        if case["audio_requested"]:
            check.equal(answer.codes, arrays[f"{name}.codes"], name)


@pytest.mark.parametrize("style", [None, "calm"])
@pytest.mark.parametrize("right", [0, 4, 40])
def test_stream_is_its_offline_definition(model: MimoAudio, right: int, style: str | None) -> None:
    """A streamed answer has the text and codes of the whole one, and the window's audio.

    In a style the model thinks first, and this one never says that speech begins.
    """
    options = Options(max_new=40, seed=1)
    generation = model.tts("Hello there, please read this.", instruction=style, options=options)
    whole = generation.result()
    events = list(generation.stream(chunk=3, left=60, right=right))
    streamed = events[-1].result
    assert streamed is not None and streamed.wav is not None and whole.wav is not None
    check.equal(streamed.codes, whole.codes, "codes")
    assert streamed.text == whole.text
    assert "".join(e.text for e in events) == whole.answer
    assert "".join(e.thinking for e in events) == whole.thinking
    assert whole.codes.shape[1] >= 20, "the seed gives too little speech to test"
    assert len(streamed.wav) == len(whole.wav)
    heard = np.concatenate([e.wav for e in events])
    check.equal(heard, streamed.wav, "events")
    assert sum(len(e.wav) > 0 for e in events) > 1, "nothing came out before the end"
    assert whole.timings.first_audio is not None and streamed.timings.first_audio is not None
    if right >= whole.codes.shape[1]:
        check.close(streamed.wav, whole.wav, tolerances.AUDIO, "one window")


@pytest.mark.parametrize("style", [None, "calm"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_a_stateful_stream_sounds_the_same_in_any_chunks(
    model: MimoAudio, chunk: int | None, style: str | None
) -> None:
    options = Options(max_new=40, seed=1)
    generation = model.tts("Hello there, please read this.", instruction=style, options=options)
    events = list(generation.stream(chunk=chunk, lookahead=2))
    result = events[-1].result
    assert result is not None and result.wav is not None
    decoder = codec.open_stream(model.backend, lookahead=2)
    expected = np.concatenate((decoder.push(result.codes), decoder.finish()))
    check.close(result.wav, expected, tolerances.AUDIO, "wav")
    check.equal(np.concatenate([e.wav for e in events]), result.wav, "events")
    assert sum(len(e.wav) > 0 for e in events) > 1, "nothing came out before the end"


def test_a_character_that_speech_splits(model: MimoAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of one character, with a patch of speech between them."""
    special, codes = model.tokenizer.special, np.zeros((model.layout.n_q, 4), np.int64)
    ids = model.tokenizer.encode("a \N{GRINNING FACE} b")
    assert len(ids) > 5, "the character is one token"
    order = [i for text_id in ids for i in (text_id, special.empty)] + [special.im_end]
    steps = [
        Step(1, i, text_id, codes if text_id == special.empty else None, stop, stop, 0.1, 0.1)
        for i, text_id in enumerate(order)
        for stop in (i == len(order) - 1,)
    ]
    generation = model.tts("Smile.")
    monkeypatch.setattr(generation, "steps", lambda: iter(steps))
    events = list(generation.stream())
    assert "".join(e.text for e in events) == generation.result().answer == "a \N{GRINNING FACE} b"
    assert "\N{REPLACEMENT CHARACTER}" in generation.result().text, "upstream's text has lost it"


@pytest.mark.parametrize("task", ["asr", "tts", "styled", "natural", "understand", "dialogue"])
def test_every_task_answers(model: MimoAudio, task: str) -> None:
    calls: dict[str, Callable[[], Result]] = {
        "asr": lambda: model.asr(CLIP, SHORT).result(),
        "tts": lambda: model.tts("Hello.", options=SHORT).result(),
        "styled": lambda: model.tts("Hi.", instruction="calm", voice=CLIP, options=SHORT).result(),
        "natural": lambda: model.tts("Say hi.", natural=True, options=SHORT).result(),
        "understand": lambda: model.understand(
            CLIP, "What is it?", thinking=True, options=SHORT
        ).result(),
        "dialogue": lambda: model.dialogue(
            [
                Message("user", audio=CLIP),
                Message("assistant", "Sunny.", CLIP),
                Message("user", audio=CLIP),
            ],
            system_prompt="Be kind.",
            voice=CLIP,
            options=SHORT,
        ).result(),
    }
    result = calls[task]()
    assert result.timings.patches <= 8 and len(result.history) == 1 + model.layout.n_q
    assert (result.wav is not None) == (task in ("tts", "styled", "natural", "dialogue"))


def test_written_tasks(model: MimoAudio) -> None:
    first = model.speech_to_text(CLIP, options=SHORT).result()
    second = model.speech_to_text(CLIP, history=first.history, options=SHORT)
    check.equal(second.request.prompt[:, : first.history.shape[1]], first.history, "history")
    turns = [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "1 + 1 = ?")]
    assert model.chat(turns, thinking=True, options=SHORT).result().wav is None
    shown = [Demonstration(CLIP, CLIP, "What is the weather like today?")]
    assert model.in_context("Repeat.", shown, CLIP, SHORT).result().wav is not None


def test_what_the_model_does_not_know_is_refused(model: MimoAudio) -> None:
    with pytest.raises(InputError, match="instruction"):
        model.tts("Hello.", voice=CLIP)
    with pytest.raises(InputError, match="natural"):
        model.tts("Hello.", natural=True, instruction="calm")


def test_what_cannot_be_is_refused_before_anything_is_encoded(
    model: MimoAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "encode", lambda *args: pytest.fail("it was encoded"))
    spec, grid = model.backend.bundle.model, np.zeros((1 + model.layout.n_q, 4), np.int64)
    endless = np.zeros(spec.context * spec.group_size * spec.samples_per_frame, np.float32)
    with pytest.raises(ContextError, match=r"patches and the context holds .* Cut it"):
        model.asr(endless)
    with pytest.raises(InputError, match="max_new"):
        model.asr(CLIP, Options(max_new=0))
    question = Message("user", audio=CLIP)
    for turns, says in (
        ([Message("user", "Hi.", CLIP)], r"turn 0 \(user\): dialogue does not use its text"),
        ([question, Message("assistant", "Yes.", CLIP), question], "a conversation or a history"),
    ):
        with pytest.raises(InputError, match=says):
            model.dialogue(turns, history=grid if len(turns) > 1 else None)
    with pytest.raises(InputError, match=r"turn 1 \(assistant\): speech-to-text .* its audio"):
        model.speech_to_text([question, Message("assistant", "Yes.", CLIP), question])
    with pytest.raises(InputError, match=r"turn 0 \(user\): chat does not use its audio"):
        model.chat([Message("user", "Hi.", CLIP)])
    with pytest.raises(InputError, match="a conversation or a history"):
        model.chat([Message("user", "Hi.")], history=grid)


def test_post_is_what_generation_makes(golden: Golden, backend: OrtBackend) -> None:
    """join_steps repeats a text id over its patch and fills text patches with empty codes."""
    prompt = golden.npz("pipeline.npz")["dlg.ids"]
    steps = list(generate(backend, Request(prompt, GREEDY, GREEDY, max_new=6), golden.empty_id))
    group = backend.bundle.model.group_size
    grid = join_steps(steps, backend.bundle.model.empty_codes, group)
    assert (grid[0].reshape(6, group) == grid[0, ::group, None]).all()
    text = grid[0] != golden.empty_id
    assert (grid[1:, text] == np.array(golden.info["speech_empty_ids"])[:, None]).all()

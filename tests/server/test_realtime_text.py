"""Realtime sessions in which something is typed, and is answered in text or read aloud."""

import dataclasses
from collections.abc import Callable

import numpy as np
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.realtime_conversation import cut_text

from tests.server.conftest import Serving, sound
from tests.server.realtime_client import BY_HAND, Raw, Talking

QUESTION_TEXT = "What is four plus five?"


def typed(text: str) -> Raw:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content}


def test_text(shared: Serving, talking: Talking) -> None:
    wanted = shared.model.chat(QUESTION_TEXT, options=Options(seed=5)).result()
    talking.session(output_modalities=["text"])
    talking.send("conversation.item.create", item=typed(QUESTION_TEXT))
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": wanted.answer}]
    deltas = [e["delta"] for e in talking.seen if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == wanted.answer


def read_aloud(shared: Serving, text: str, seed: int) -> np.ndarray:
    """A sentence as the Python API streams it."""
    generation = shared.model.tts(text, options=Options(seed=seed))
    how = dataclasses.asdict(shared.service.streaming)
    return pcm16(np.concatenate([e.wav for e in generation.stream(**how)]), "x")


def test_text_is_answered_with_speech(shared: Serving, talking: Talking) -> None:
    wanted = shared.model.chat(QUESTION_TEXT, options=Options(seed=5)).result()
    spoken = read_aloud(shared, wanted.answer, 5)
    talking.session()
    talking.send("conversation.item.create", item=typed(QUESTION_TEXT))
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": wanted.answer}]
    assert (talking.audio() == spoken).all()
    again = shared.model.chat("And six plus one?", history=wanted.history, options=Options(seed=5))
    talking.send("conversation.item.create", item=typed("And six plus one?"))
    talking.send("response.create")
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == again.result().answer


def test_text_and_speech_at_once(shared: Serving, talking: Talking) -> None:
    """A question about a sound begins a conversation; later one of them is taken at a time."""
    wav = sound().astype(np.float32) / 32768
    wanted = shared.model.understand(wav, "What is said?", options=Options(seed=5, max_new=24))
    talking.session(output_modalities=["text"], max_output_tokens=24, **BY_HAND)
    for status in ("completed", "failed"):
        talking.say(sound())
        talking.send("input_audio_buffer.commit")
        talking.send("conversation.item.create", item=typed("What is said?"))
        talking.send("response.create")
        done = talking.until("response.done")["response"]
        assert (done["status"] == "failed") == (status == "failed"), done
        if status == "completed":
            assert done["output"][0]["content"][0]["text"] == wanted.result().answer
    assert "one of them at a time" in done["status_details"]["error"]["message"]


def test_what_was_not_read_aloud_yet_is_forgotten(
    shared: Serving, talking: Talking, slow: Callable[..., None]
) -> None:
    talking.session()
    talking.send("conversation.item.create", item=typed(QUESTION_TEXT))
    slow(0.02)
    talking.send("response.create")
    talking.until("response.output_audio.delta")
    talking.send("response.cancel")
    done = talking.until("response.done")["response"]
    assert done["status"] == "cancelled" and done["output"][0]["status"] == "incomplete"
    shared.idle()
    item_id = done["output"][0]["id"]
    talking.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=0)
    talking.until("conversation.item.truncated")
    talking.send("conversation.item.create", item=typed("Say two."))
    talking.send("response.create")
    assert talking.until("response.done")["response"]["status"] == "completed"


def test_an_answer_beside_the_conversation(shared: Serving, talking: Talking) -> None:
    """It has an input of its own, or a copy of what is there; the conversation never learns."""
    wanted = shared.model.chat(QUESTION_TEXT, options=Options(seed=5)).result()
    talking.session(output_modalities=["text"])
    talking.send("conversation.item.create", item={"id": "later", **typed("Say two.")})
    aside = {"conversation": "none", "input": [typed(QUESTION_TEXT)]}
    talking.send("response.create", response=aside)
    done = talking.until("response.done")["response"]
    assert done["output"][0]["content"][0]["text"] == wanted.answer
    assert done["conversation_id"] is None
    reference = [{"type": "item_reference", "id": "later"}]
    later = shared.model.chat("Say two.", options=Options(seed=5)).result().answer
    for asked in ({**aside, "input": reference}, {"conversation": "none"}, {}):
        talking.send("response.create", response=asked)
        done = talking.until("response.done")["response"]
        assert done["output"][0]["content"][0]["text"] == later
    assert talking.kinds().count("conversation.item.added") == 2, "the user's, and one answer"


def test_what_was_not_read_aloud_is_cut_from_the_history(shared: Serving) -> None:
    model = shared.model
    result = model.chat(QUESTION_TEXT, options=Options(seed=5)).result()
    start = model.chat(QUESTION_TEXT).request.prompt.shape[1] // 4
    whole = (start, len(result.answer), model.tokenizer, model.layout)
    assert (cut_text(result.history, *whole) == result.history).all()
    cut = cut_text(result.history, start, 1, model.tokenizer, model.layout)
    assert cut.shape[1] == 4 * (start + 2), "one token, and the end"
    assert (cut[:, -4:] == result.history[:, -4:]).all()
    assert (cut[:, :-4] == result.history[:, : cut.shape[1] - 4]).all()

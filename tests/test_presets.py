"""Sampling settings and the table of tasks."""

import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.presets import PRESETS, Sampling
from mimo_edge.runtime.chat.text_tokenizer import SpecialIds

SPECIAL = SpecialIds(
    sosp=101, eosp=102, empty=103, sostm=104, eostm=105, eot=106, im_start=1, im_end=2, eos=3
)


def test_the_tasks_and_what_they_speak() -> None:
    speaks = {name for name, preset in PRESETS.items() if preset.speaks}
    assert speaks == {"tts", "dialogue", "in-context"}
    assert {*PRESETS} - speaks == {"asr", "understand", "speech-to-text", "chat"}


def test_sampling_is_upstreams() -> None:
    assert {name: (p.text.temperature, p.text.top_p) for name, p in PRESETS.items()} == {
        "asr": (0.0, 1.0),
        "tts": (0.6, 1.0),
        "understand": (0.3, 0.95),
        "dialogue": (0.6, 0.95),
        "speech-to-text": (0.6, 0.95),
        "chat": (0.4, 0.95),
        "in-context": (0.0, 1.0),
    }
    assert {(p.audio.temperature, p.audio.top_p) for p in PRESETS.values()} == {(0.9, 0.95)}
    assert {p.text.top_k for p in PRESETS.values()} == {0}


def test_stop_tokens_are_special_ids() -> None:
    names = {field.name for field in fields(SpecialIds)}
    for preset in PRESETS.values():
        assert set(preset.stop) <= names
        # Interleaved speech ends with eostm; a written answer never gets there.
        assert ("eostm" in preset.stop) == preset.speaks
    assert PRESETS["tts"].stop_ids(SPECIAL) == (3, 105, 2)
    assert PRESETS["asr"].stop_ids(SPECIAL) == (3, 2)
    assert PRESETS["in-context"].stop_ids(SPECIAL) == (3, 105)


def test_a_stop_token_with_two_names_counts_once() -> None:
    same = replace(SPECIAL, eos=SPECIAL.im_end)
    assert PRESETS["chat"].stop_ids(same) == (2,)


def test_presets_cannot_be_changed() -> None:
    table: Any = PRESETS
    with pytest.raises(TypeError):
        table["asr"] = PRESETS["tts"]
    sampling: Any = PRESETS["asr"].text
    with pytest.raises(FrozenInstanceError):
        sampling.temperature = 1.0


def test_greedy_is_temperature_zero() -> None:
    assert Sampling(0).greedy
    numpy_numbers: Any = {"temperature": np.float32(0.5), "top_k": np.int64(3)}
    assert not Sampling(**numpy_numbers).greedy


@pytest.mark.parametrize(
    "field", [{"temperature": -0.1}, {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0}, {"top_p": 1.01}]
)
def test_values_out_of_range_are_refused(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(InputError, match=rf"{name} must .*use"):
        Sampling(**{"temperature": 1.0} | field)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p"])
@pytest.mark.parametrize("value", ["0.5", None, True, math.nan, math.inf])
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{name} must .*use"):
        Sampling(**{"temperature": 1.0} | {name: value})

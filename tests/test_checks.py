"""What programs give: numbers of any kind, messages in any form, and a sentence for the rest."""

import base64
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.checks import SEEDS, as_grid, checked_limits, whole_number
from mimo_edge.runtime.chat.conversation import Message
from mimo_edge.runtime.chat.messages import as_messages
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.options import Options


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), np.array(7)])
def test_whole_numbers_of_any_kind(value: Any) -> None:
    found = whole_number("seed", value, 0)
    assert found == 7 and type(found) is int
    options = Options(seed=value, max_new=value)
    assert (type(options.seed), type(options.max_new)) == (int, int)


@pytest.mark.parametrize(
    "value", [2.5, 7.0, float("nan"), "7", True, np.True_, None, [7], 0, -1, np.array([1, 2])]
)
def test_what_is_no_number_of_patches(value: Any) -> None:
    with pytest.raises(InputError, match=r"max_new must be a whole number, 1 or more, not"):
        whole_number("max_new", value, 1)


def test_limits_of_an_answer() -> None:
    assert checked_limits(None, 0, SEEDS - 1) == (None, 0, SEEDS - 1)
    for given, named in (
        ((0, 0, 0), "max_new"),
        ((1, -1, 0), "min_new"),
        ((1, 0, SEEDS), "seed"),
        ((1, 0, -1), "seed"),
    ):
        with pytest.raises(InputError, match=named):
            checked_limits(*given)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"text": 0.5}, "options.text must be a Sampling"),
        ({"audio": {"temperature": 1}}, "options.audio must be a Sampling"),
        ({"template": 5}, "options.template must be text"),
        ({"max_new": float("nan")}, "max_new"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_options(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Options(**wrong)
    assert Options(text=Sampling(0.5)).text == Sampling(0.5)


def test_a_history() -> None:
    grid = np.zeros((9, 4), np.int64)

    class Answer:
        history = grid

    assert as_grid(None) is None and as_grid(grid) is grid and as_grid(Answer()) is grid
    for wrong in ("talk.npz", [[1]], 5):
        with pytest.raises(InputError, match="history must be a Result or its history, not"):
            as_grid(wrong)


SOUND = base64.b64encode(b"RIFF").decode()
HEARD = [
    {"type": "text", "text": "What is this?"},
    {"type": "input_audio", "input_audio": {"data": SOUND}},
]


def test_messages_in_any_form() -> None:
    expected = [
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "And?", b"RIFF"),
    ]
    given = (
        {"role": "user", "text": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        Message("user", "And?", b"RIFF"),
    )
    assert as_messages(list(given)) == as_messages(iter(given)) == expected
    assert as_messages({"role": "user", "content": HEARD} for _ in range(1)) == [
        Message("user", "What is this?", b"RIFF")
    ]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("Hi", "messages must be a list of messages, not str"),
        ({"role": "user", "text": "Hi"}, "not dict; put a single one into a list"),
        (5, "not int"),
        ([5], "message 0 must be a Message, not int"),
        ([Message("user", "Hi"), None], "message 1 must be a Message, not NoneType"),
        ([{"role": ["user"], "text": "Hi"}], r"message 0: role must be text, not \['user'\]"),
        ([{"role": "user", "text": 5}], "message 0: text must be text, not 5"),
        ([{"role": "user", "txt": "Hi"}], r"has the keys \['role', 'txt'\]; give role"),
        ([{"text": "Hi"}], "give role"),
        ([{"role": "system", "content": "Obey."}], "give its text as system_prompt"),
        ([{"role": "user", "content": None}], "content must be text, or parts"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url' is not known"),
        ([{"role": "user", "content": [*HEARD, HEARD[0]]}], "one text and one audio at most"),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "?"}}]}],
            "content must be text, or parts",
        ),
    ],
)
def test_messages_that_are_none(messages: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        as_messages(messages)

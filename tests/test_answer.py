"""What is made of a generated answer, against upstream's `MimoAudio.forward`."""

import numpy as np
import pytest
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.answer import (
    answer_text,
    decode_pieces,
    split_answer,
)
from mimo_edge.runtime.chat.segments import PromptLayout
from mimo_edge.runtime.chat.text_tokenizer import SpecialIds, TextTokenizer
from mimo_edge.runtime.chat.thought import split_thinking

from tests.golden import Golden
from tests.grids import layout_of

SMALL = PromptLayout(group_size=2, n_q=3, empty_codes=(9, 9, 5))
SPECIAL = SpecialIds(
    sosp=101, eosp=102, empty=103, sostm=104, eostm=105, eot=106, im_start=1, im_end=2, eos=3
)
SPEECH, OPEN, CLOSE, END = SPECIAL.empty, SPECIAL.sostm, SPECIAL.eostm, SPECIAL.im_end


def generated(text_ids: list[int]) -> np.ndarray:
    """An answer [4, 2P] as the model writes it; all codes of patch p are p modulo 5."""
    patches = np.repeat(np.arange(len(text_ids)), SMALL.group_size)
    row = np.repeat(np.array(text_ids, dtype=np.int64), SMALL.group_size)
    empty = np.array(SMALL.empty_codes)[:, None]
    return np.concatenate([row[None], np.where(row == SPEECH, patches % 5, empty)])


def spoken(text_ids: list[int], **options: bool) -> list[int]:
    """The patches whose codes are left, each once."""
    answer = split_answer(generated(text_ids), SMALL, SPECIAL, **{"stopped": False} | options)
    assert (answer.codes == answer.codes[0]).all()
    return answer.codes[0, :: SMALL.group_size].tolist()


def test_answers_are_upstreams(golden: Golden) -> None:
    layout = layout_of(golden)
    tokenizer = TextTokenizer.from_folder(golden.folder / "text_tokenizer")
    cases = golden.json("post.json")
    wrong = []
    with np.load(golden.folder / "post.npz") as arrays:
        for name, case in cases.items():
            answer = split_answer(
                arrays[f"{name}.generated"],
                layout,
                tokenizer.special,
                stopped=False,
                upstream_drop_last=True,
            )
            if answer_text(answer.text_ids, tokenizer) != case["text"]:
                wrong.append(f"{name}: text")
            if not case["audio_requested"]:
                continue
            if not np.array_equal(answer.codes, arrays[f"{name}.codes"]):
                wrong.append(f"{name}: codes")
            pieces = [stop - start for start, stop in decode_pieces(answer.codes.shape[1])]
            if pieces != case["decode_segment_frames"]:
                wrong.append(f"{name}: pieces")
    assert cases
    assert not wrong, f"answers that differ from upstream's: {wrong}"


def test_speech_lies_between_its_marks() -> None:
    assert spoken([7, OPEN, SPEECH, SPEECH, 8, SPEECH, CLOSE, SPEECH]) == [2, 3, 0]
    assert spoken([SPEECH, SPEECH, CLOSE, SPEECH]) == [0, 1]  # no start: the prompt had it
    assert spoken([SPEECH, OPEN, SPEECH, SPEECH]) == [2, 3]  # no end: the length ran out
    assert spoken([SPEECH, 7, SPEECH]) == [0, 2]
    assert spoken([OPEN, SPEECH, OPEN, SPEECH, CLOSE, CLOSE, SPEECH]) == [
        1,
        3,
    ]  # the first mark of each kind counts
    assert spoken([SPEECH, CLOSE, OPEN, SPEECH]) == []  # ended before it began
    assert spoken([]) == []


def test_the_last_patch_goes_only_with_a_stop_token() -> None:
    ids = [OPEN, SPEECH, SPEECH, SPEECH]
    assert spoken(ids, stopped=False) == [1, 2, 3]
    assert spoken(ids, upstream_drop_last=True) == [1, 2]
    assert spoken([OPEN, SPEECH, SPEECH, END], stopped=True) == [1, 2]
    assert spoken([OPEN, SPEECH, SPEECH, END], stopped=True, upstream_drop_last=True) == [1, 2]
    answer = split_answer(generated([7, 8, END]), SMALL, SPECIAL, stopped=True)
    assert answer.text_ids == (7, 8)
    assert answer.codes.shape == (3, 0)
    assert answer.codes.dtype == np.int64


def test_frames_are_dropped_by_their_first_code() -> None:
    grid = generated([OPEN, SPEECH, SPEECH])
    grid[1, 3] = SMALL.empty_codes[0]
    grid[2:, 3] = 8  # out of range, but nobody hears this frame
    assert split_answer(grid, SMALL, SPECIAL, stopped=False).codes[0].tolist() == [1, 2, 2]


@pytest.mark.parametrize(("row", "code"), [(1, 10), (2, 9), (3, 5), (3, -1)])
def test_codes_that_do_not_exist_are_refused(row: int, code: int) -> None:
    grid = generated([OPEN, SPEECH, SPEECH])
    grid[row, 4] = code
    message = rf"code {code} at frame 2 of codebook {row - 1} .* export"
    with pytest.raises(InputError, match=message):
        split_answer(grid, SMALL, SPECIAL, stopped=False)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4,), (1, 4, 4)])
def test_a_grid_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="generated columns only"):
        split_answer(np.zeros(shape, np.int64), SMALL, SPECIAL, stopped=False)


def test_blanks_are_stripped_before_the_marks_go(golden: Golden) -> None:
    tokenizer = TextTokenizer.from_folder(golden.folder / "text_tokenizer")
    for text, expected in (
        ("  hi there \n", "hi there"),
        ("<|empty|> hi <|eot|>", " hi "),  # upstream's order
        ("a<|empty|><|empty|>b<|eot|><|eostm|>", "ab"),
        ("<|sostm|>hi", "<|sostm|>hi"),
        ("", ""),
    ):
        assert answer_text(tokenizer.encode(text), tokenizer) == expected


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nwhy\n</think>\nwhat", False, ("why", "what")),
        ("why</think>what", True, ("why", "what")),
        ("why</think>what", False, ("why", "what")),
        ("<think>\n\n</think>\nwhat", False, ("", "what")),
        ("what", False, ("", "what")),
        ("why, cut sho", True, ("why, cut sho", "")),
        ("<think>why, cut sho", False, ("why, cut sho", "")),
        ("so: <think>why</think>what", False, ("why", "so: what")),
        ("", False, ("", "")),
    ],
)
def test_thinking_is_split_off(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split_thinking(text, opened=opened) == expected


def test_pieces_cover_all_frames_once() -> None:
    assert list(decode_pieces(0)) == []
    assert list(decode_pieces(1500)) == [(0, 1500)]
    assert list(decode_pieces(3001)) == [(0, 1500), (1500, 3000), (3000, 3001)]
    assert list(decode_pieces(5, piece=2)) == [(0, 2), (2, 4), (4, 5)]

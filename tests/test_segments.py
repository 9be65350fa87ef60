"""The grids of text, audio and interleaved speech, against upstream's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.segments import (
    PAD,
    PromptLayout,
    audio_segment,
    pad_codes,
    streaming_segment,
    text_segment,
)
from mimo_edge.runtime.chat.text_tokenizer import SpecialIds, TextTokenizer

from tests.golden import Golden
from tests.grids import layout_of

SMALL = PromptLayout(group_size=2, n_q=3, empty_codes=(9, 9, 5))
SPECIAL = SpecialIds(
    sosp=101, eosp=102, empty=103, sostm=104, eostm=105, eot=106, im_start=1, im_end=2, eos=3
)


def codes(patches: int) -> np.ndarray:
    """Codes [3, 2 * patches], all different where they can be."""
    frames = np.arange(2 * patches)
    return np.stack([frames % 9, (frames + 3) % 9, frames % 5])


def text_row(grid: np.ndarray) -> list[int]:
    return [int(i) for i in grid[0, :: SMALL.group_size]]


def golden_grid(
    name: str,
    case: dict[str, Any],
    arrays: Any,
    tokenizer: TextTokenizer,
    layout: PromptLayout,
) -> np.ndarray:
    if "speech_zeroemb_idx" in case:  # one id for all codebooks
        layout = replace(layout, empty_codes=(case["speech_zeroemb_idx"],) * layout.n_q)

    def audio(flat: str) -> np.ndarray:
        return arrays[flat].reshape(-1, layout.n_q).T

    if case["cls"] == "InputSegment" and "audio" in case:
        return audio_segment(
            audio(f"{case['audio']}.codes_flat"),
            layout,
            tokenizer.special,
            framed=case["add_sosp_eosp"],
        )
    if "tokenized_text" in case:
        text_ids = arrays[case["tokenized_text"]].tolist()
    else:
        text_ids = tokenizer.encode(case["text"])
    if case["cls"] == "InputSegment":
        return text_segment(text_ids, layout)
    if "n_text_tokens" in case:
        assert len(text_ids) == case["n_text_tokens"]
    return streaming_segment(text_ids, audio(f"{name}.codes_flat"), layout, tokenizer.special)


def test_segments_are_upstreams(golden: Golden) -> None:
    layout = layout_of(golden)
    tokenizer = TextTokenizer.from_folder(golden.folder / "text_tokenizer")
    cases = golden.json("segments.json")
    wrong = []
    with np.load(golden.folder / "segments.npz") as arrays:
        for name, case in cases.items():
            grid = golden_grid(name, case, arrays, tokenizer, layout)
            assert grid.dtype == np.int64
            if not np.array_equal(grid, arrays[f"{name}.ids"]):
                wrong.append(name)
    assert cases
    assert not wrong, f"segments that differ from upstream's: {wrong}"


def test_text_stands_in_the_first_column_of_a_patch() -> None:
    grid = text_segment([7, 8], SMALL)
    assert grid.tolist() == [[7, PAD, 8, PAD], [9, 9, 9, 9], [9, 9, 9, 9], [5, 5, 5, 5]]
    assert text_segment([], SMALL).shape == (4, 0)


def test_audio_is_framed_on_request() -> None:
    grid = audio_segment(codes(2), SMALL, SPECIAL)
    assert text_row(grid) == [101, 103, 103, 102]
    assert grid[:, 2:-2].tolist() == audio_segment(codes(2), SMALL, SPECIAL, framed=False).tolist()
    assert grid[1:, 2:-2].tolist() == codes(2).tolist()
    assert grid[1:, :2].tolist() == grid[1:, -2:].tolist() == [[9, 9], [9, 9], [5, 5]]


@pytest.mark.parametrize("n_text", [0, 1, 4, 5, 6, 10, 11, 23])
@pytest.mark.parametrize("n_patches", [0, 1, 5, 6, 10, 23])
def test_text_and_speech_take_turns(n_text: int, n_patches: int) -> None:
    grid = streaming_segment(list(range(10, 10 + n_text)), codes(n_patches), SMALL, SPECIAL)
    row = text_row(grid)
    assert row[0] == 104
    assert row[-1] == 105
    assert len(row) == n_text + n_patches + 3
    # Nothing is lost or out of order.
    assert [i for i in row[1:-1] if i != 103] == [*range(10, 10 + n_text), 106]
    speech = np.repeat(np.array(row) == 103, SMALL.group_size)
    assert grid[1:, speech].tolist() == codes(n_patches).tolist()
    assert (grid[1:, ~speech] == np.array(SMALL.empty_codes)[:, None]).all()
    # Runs are of five, until one kind is used up; eot does not count.
    kinds = "".join("s" if i == 103 else "t" for i in row[1:-1] if i != 106)
    turns = min(n_text, n_patches) // 5
    assert kinds.startswith("tttttsssss" * turns)


def test_text_that_is_empty_still_ends() -> None:
    assert text_row(streaming_segment([], codes(6), SMALL, SPECIAL)) == [
        *(104, 106),
        *[103] * 6,
        105,
    ]


def test_padding_repeats_the_last_frame() -> None:
    padded = pad_codes(codes(2)[:, :3], 2)
    assert padded.tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [0, 1, 2, 2]]
    assert pad_codes(padded, 2).tolist() == padded.tolist()
    assert pad_codes(np.zeros((3, 0), int), 2).shape == (3, 0)


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (np.zeros((20, 4), int), "keep the first 3"),
        (np.zeros((3, 3), int), "pad_codes"),
        (np.zeros((3, 4)), "integers"),
        (np.zeros(12, int), "integers"),
        (np.full((3, 4), -1), "outside 0..8"),
        (np.full((3, 4), 5), "code 5 at frame 0 of codebook 2"),
    ],
)
def test_unusable_codes_are_refused(bad: np.ndarray, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        audio_segment(bad, SMALL, SPECIAL)
    with pytest.raises(InputError, match=remedy):
        streaming_segment([1], bad, SMALL, SPECIAL)


@pytest.mark.parametrize(("group_size", "n_q"), [(0, 3), (4, 2), (4, 0)])
def test_a_layout_must_be_whole(group_size: int, n_q: int) -> None:
    with pytest.raises(InputError, match="config"):
        PromptLayout(group_size=group_size, n_q=n_q, empty_codes=(1, 2, 3))

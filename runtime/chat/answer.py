"""What a finished answer says and the codes it speaks.

Shapes: K codebooks, T frames, P patches, G group_size, as in `mimo_edge.runtime.chat.segments`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import AUDIO_SECONDS
from mimo_edge.runtime.chat.segments import Grid, PromptLayout, check_range
from mimo_edge.runtime.chat.text_tokenizer import SpecialIds, TextTokenizer

FRAMES_PER_SECOND = 25
DECODE_PIECE = AUDIO_SECONDS * FRAMES_PER_SECOND  # the most that upstream decodes at once


@dataclass(frozen=True, eq=False)
class Answer:
    """A generated answer, taken apart."""

    text_ids: tuple[int, ...]  # [P], one of each patch; the empty id where there was speech
    codes: Grid  # [K, T], T may be 0; no longer a whole number of patches


def split_answer(
    grid: Grid,
    layout: PromptLayout,
    special: SpecialIds,
    *,
    stopped: bool,
    upstream_drop_last: bool = False,
) -> Answer:
    """Take apart what was generated after the prompt, `grid` [1 + K, P * G].

    `stopped`: generation ended with a stop token, whose patch is no part of the answer. Upstream
    drops the last patch also when the length ran out, and loses 160 ms of speech;
    `upstream_drop_last` does the same. Speech lies between the first sostm, or the start, and the
    first eostm, or the end. Raises InputError for a grid of another shape, or with codes that no
    audio tokenizer has.
    """
    rows, columns = grid.shape if grid.ndim == 2 else (0, 0)
    if rows != 1 + layout.n_q or columns % layout.group_size:
        raise InputError(
            f"an answer must be [{1 + layout.n_q}, patches * {layout.group_size}], "
            f"not {list(grid.shape)}; pass the generated columns only, all of them"
        )
    text = grid[0, :: layout.group_size]  # [P]
    if stopped or upstream_drop_last:
        text = text[:-1]
    (opened,) = np.nonzero(text == special.sostm)
    (closed,) = np.nonzero(text == special.eostm)
    start = int(opened[0]) + 1 if opened.size else 0
    stop = int(closed[0]) if closed.size else len(text)

    codes = grid[1:, start * layout.group_size : stop * layout.group_size]  # [K, T]
    codes = codes[:, codes[0] != layout.empty_codes[0]]
    check_range(codes, layout, "the answer's speech", "export the bundle again")
    return Answer(tuple(int(i) for i in text), codes.astype(np.int64))


def answer_text(text_ids: Iterable[int], tokenizer: TextTokenizer) -> str:
    """The text of an answer, without the special tokens of speech.

    Blanks are stripped before they go, as upstream does it: blanks beside one stay.
    """
    text = tokenizer.decode(text_ids).strip()
    for mark in ("<|empty|>", "<|eot|>", "<|eostm|>"):
        text = text.replace(mark, "")
    return text


def decode_pieces(n_frames: int, piece: int = DECODE_PIECE) -> Iterator[tuple[int, int]]:
    """(start, stop) of the pieces in which `n_frames` frames are decoded, each on its own."""
    for start in range(0, n_frames, piece):
        yield start, min(start + piece, n_frames)

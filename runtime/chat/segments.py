"""The pieces of a prompt as grids: row 0 is the text row, rows 1..K are the code rows.

One patch is `group_size` columns. Of the text row the model reads only the first column of a patch,
so the others hold -100. A patch of text has empty codes; a patch of speech has the empty text id.

Shapes: K codebooks (`n_q`), T frames, P patches, G group_size; a grid is int64 [1 + K, P * G].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.text_tokenizer import SpecialIds
from numpy.typing import NDArray

Grid = NDArray[np.int64]  # [1 + K, P * G]
Codes = NDArray[np.integer[Any]]  # [K, T]

PAD = -100
RUN = 5  # interleaved speech: five text tokens, five patches, five text tokens, ...


@dataclass(frozen=True)
class PromptLayout:
    """How the language model lays out its input."""

    group_size: int
    n_q: int
    empty_codes: tuple[int, ...]  # [K], the code of each codebook that means "no speech here"

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.n_q < 1 or len(self.empty_codes) != self.n_q:
            raise InputError(
                f"{self.n_q} codebooks in patches of {self.group_size} frames, with "
                f"{len(self.empty_codes)} empty codes: there must be one empty code for each "
                "codebook and a frame in each patch; check the bundle's config"
            )


def text_segment(text_ids: Sequence[int], layout: PromptLayout) -> Grid:
    """One patch for each text id: [1 + K, P * G], P = len(text_ids) and may be 0."""
    grid = np.full((1 + layout.n_q, len(text_ids), layout.group_size), PAD, np.int64)  # [1+K, P, G]
    grid[0, :, 0] = text_ids
    grid[1:] = np.array(layout.empty_codes)[:, None, None]
    return grid.reshape(1 + layout.n_q, -1)


def audio_segment(
    codes: Codes, layout: PromptLayout, special: SpecialIds, *, framed: bool = True
) -> Grid:
    """Codes [K, T], T a multiple of G, as speech patches; `framed` puts sosp and eosp around them.

    Returns [1 + K, P * G] with P = T / G, and 2 more if framed. Raises InputError for codes of
    another shape or out of range.
    """
    codes = _checked(codes, layout)
    patches = codes.shape[1] // layout.group_size
    speech = text_segment([special.empty] * patches, layout)
    speech[1:] = codes
    if not framed:
        return speech
    return np.concatenate(
        [text_segment([special.sosp], layout), speech, text_segment([special.eosp], layout)], axis=1
    )


def streaming_segment(
    text_ids: Sequence[int], codes: Codes, layout: PromptLayout, special: SpecialIds
) -> Grid:
    """Text and its speech as the model itself would have spoken them, from sostm to eostm.

    Five text tokens and five patches take turns; what is left of the longer one follows. eot
    belongs to the last run of text, which so has up to six tokens. Codes [K, T], T a multiple of G.
    Returns [1 + K, P * G], P = len(text_ids) + T / G + 3.
    """
    speech = audio_segment(codes, layout, special, framed=False)  # [1+K, T]
    # No text at all still makes one run, of eot alone.
    texts = [list(text_ids[at : at + RUN]) for at in range(0, len(text_ids) or 1, RUN)]
    texts[-1].append(special.eot)
    width = RUN * layout.group_size
    sounds = [speech[:, at : at + width] for at in range(0, speech.shape[1], width)]

    parts = [text_segment([special.sostm], layout)]
    for text, sound in zip_longest(texts, sounds):
        if text is not None:
            parts.append(text_segment(text, layout))
        if sound is not None:
            parts.append(sound)
    parts.append(text_segment([special.eostm], layout))
    return np.concatenate(parts, axis=1)


def pad_codes(codes: Codes, group_size: int) -> NDArray[np.int64]:
    """Codes [K, T] with the last frame repeated until T is a multiple of `group_size`."""
    array = _integers(codes)
    missing = -array.shape[1] % group_size
    return np.concatenate([array, np.repeat(array[:, -1:], missing, axis=1)], axis=1)


def check_range(codes: Codes, layout: PromptLayout, name: str, remedy: str) -> None:
    """Raise InputError unless every code of `codes` [K, T] is one that its codebook has."""
    wrong = (codes < 0) | (codes >= np.array(layout.empty_codes)[:, None])  # [K, T]
    if wrong.any():
        book, frame = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{name}: code {codes[book, frame]} at frame {frame} of codebook {book} is outside "
            f"0..{layout.empty_codes[book] - 1}; {remedy}"
        )


def _integers(codes: Codes) -> NDArray[np.int64]:
    array = np.asarray(codes)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InputError(
            f"codes must be integers [codebooks, frames], not {array.dtype} {list(array.shape)}; "
            "pass what the audio tokenizer's encoder returned"
        )
    return array.astype(np.int64)


def _checked(codes: Codes, layout: PromptLayout) -> NDArray[np.int64]:
    array = _integers(codes)
    if array.shape[0] != layout.n_q:
        raise InputError(
            f"codes have {array.shape[0]} codebooks but the model reads {layout.n_q}; "
            f"keep the first {layout.n_q}"
        )
    if array.shape[1] % layout.group_size:
        raise InputError(
            f"{array.shape[1]} frames are no whole number of patches of {layout.group_size}; "
            "use pad_codes first"
        )
    check_range(array, layout, "codes", "take them from this model's own audio tokenizer")
    return array

"""What a backend must do: run the pieces, and keep the state of the rows it decodes.

A backend is opened on a bundle and closed; between the two it hands out `RowStates`, the decode
state of several rows that share each step. Arrays that cross this line are numpy; what a backend
keeps between calls (states, keys, values) is its own affair.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from mimo_edge.runtime.bundle.bundle import Bundle
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
# of ONNX Runtime: names of execution providers, each alone or with its options
Providers = Sequence[str | tuple[str, Mapping[str, str]]]


class RowStates(Protocol):
    """The language model's state of `rows` rows, each with its own length.

    `lengths` [rows] counts the positions a row holds. A row that is not in use has length 0 and
    costs its share of a step.
    """

    rows: int
    capacity: int  # positions that a row can hold at most
    lengths: Ints

    def prefill(self, row: int, text_ids: Ints, codes: Ints) -> Floats:
        """Give a row its prompt: text_ids [P], codes [P, K, G] -> text scores [V].

        The row is emptied first. Raises ResourceError if the cache cannot grow to hold it.
        """

    def step(self, text_ids: Ints, codes: Ints, active: NDArray[np.bool_]) -> Floats:
        """One more patch for the active rows: [rows], [rows, K, G], [rows] -> scores [rows, V]."""

    def draw_codes(self, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats) -> Ints:
        """Codes [rows, G, K] from the states of the newest positions.

        uniforms [rows, G, K]; the settings are [rows].
        """

    def clear(self, row: int) -> None:
        """Forget a row."""


class CodecStates(Protocol):
    """Keys and values of streams in `rows` rows, and the two graphs that use them.

    All else that a stream leaves behind crosses this line and comes back with the next call.
    """

    rows: int
    remembered: int  # mel frames that vocoder_stream keeps of a row
    last_shape: tuple[int, ...]  # of what mel_stream keeps of a row beside its statistics
    last_dtype: np.dtype[Any]

    def mel(
        self,
        codes: Ints,
        lengths: Ints,
        positions: Ints,
        weights: Ints,
        statistics: Floats,
        last: Floats,
    ) -> tuple[Floats, Floats, Floats]:
        """mel_stream: codes [rows, K, T] -> mel [rows, T * M, n_mels], statistics and last.

        lengths, positions, weights [rows]; statistics [rows, 4]; last [rows, *last_shape].
        """

    def frames(
        self,
        mel: Floats,
        positions: Ints,
        blocks: Ints,
        until: Ints,
        past_positions: Ints,
        kept: Ints,
    ) -> tuple[Floats, Floats]:
        """vocoder_stream: tokens [rows, Q, n_mels] -> windowed frames [rows, Q, n_fft], and the
        square of the window [n_fft].

        positions, blocks, until [rows, Q]; past_positions and kept [rows, remembered].
        """

    def clear(self, row: int) -> None:
        """Zero a row: what is masked counts for nothing, unless it is NaN or infinite."""

    def close(self) -> None:
        """Give the memory back."""


class Codec(Protocol):
    """Audio to codes and back: the half of a backend that the language model does not need."""

    bundle: Bundle

    def load(self, pieces: Sequence[str]) -> None:
        """Make pieces ready, so that no later call pays for loading them."""

    def mel(self, wav: Floats) -> Floats:
        """wav [N] -> log-mel [1 + N // hop, n_mels]"""

    def encode(self, mel: Floats) -> Ints:
        """log-mel [T, n_mels] -> codes of all codebooks [n_q, T_code]"""

    def decode(self, codes: Ints, lengths: Ints) -> Floats:
        """codes [B, K, T], lengths [B] -> wav [B, T * samples_per_frame]"""

    def new_codec_rows(self, rows: int) -> CodecStates:
        """Fresh state of this many streams."""


class Backend(Codec, Protocol):
    """Runs the pieces of one bundle."""

    def new_rows(self, rows: int) -> RowStates:
        """Fresh decode state for this many rows."""

    def describe(self) -> str:
        """One line for people: product, version, device."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

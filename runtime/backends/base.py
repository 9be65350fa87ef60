"""What a backend must do: run the pieces, and keep the state of the rows it decodes.

A backend is opened on a bundle and closed; between the two it hands out `RowStates`, the decode
state of several rows that share each step. Arrays that cross this line are numpy; what a backend
keeps between calls (states, keys, values) is its own affair.

Neither is thread-safe, except that several threads may ask for pieces at once (`load`): whatever
decodes for many callers does so in one thread, `generation.scheduler`.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from mimo_edge.runtime.bundle.bundle import Bundle
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Feed = Mapping[str, NDArray[Any]]  # port -> what it is given
# of ONNX Runtime: names of execution providers, each alone or with its options
Providers = Sequence[str | tuple[str, Mapping[str, str]]]


class RowStates(Protocol):
    """The language model's state of `rows` rows, each with its own length.

    `lengths` [rows] counts the positions a row holds. A row may hold positions that nobody goes on
    with for now: they stay until it is truncated. Scores and codes that a call returns may be views
    of a buffer: they are valid until the next call of any method.
    """

    rows: int
    capacity: int  # positions that a row can hold at most
    lengths: Ints

    def extend(self, row: int, text_ids: Ints, codes: Ints) -> Floats:
        """Append positions to a row: text_ids [P], codes [P, K, G] -> text scores [V] of the last.

        Raises ContextError if they do not fit the row, ResourceError if there is no memory for
        them; the row is then as it was.
        """

    def truncate(self, row: int, length: int) -> None:
        """Forget what a row holds beyond `length` positions, NaN or infinite values included."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Let row `target` hold the first `length` positions of row `source`, and nothing else."""

    def step(self, first: int, text_ids: Ints, codes: Ints, active: Bools) -> Floats:
        """One more patch for the active ones of n rows, from row `first` on.

        text_ids [n], codes [n, K, G], active [n] -> text scores [n, V]. Those of rows that are not
        active say nothing, and what these rows hold does not change.
        """

    def draw_codes(
        self, first: int, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats
    ) -> Ints:
        """Codes [n, G, K] from the newest positions of n rows, from row `first` on.

        uniforms [n, G, K]; the settings are [n].
        """

    def close(self) -> None:
        """Give the memory back. Nothing else may be called then; a second time does nothing."""


class CodecStates(Protocol):
    """Keys and values of streams in `rows` rows, and the two graphs that use them.

    All else that a stream leaves behind crosses this line and comes back with the next call.
    """

    rows: int
    remembered: int  # mel frames that vocoder_stream keeps of a row
    last_shape: tuple[int, ...]  # of what mel_stream keeps of a row beside its statistics

    def mel(self, feed: Feed) -> tuple[Floats, Floats, Floats]:
        """mel_stream -> mel [rows, T * M, n_mels], statistics [rows, 4], last [rows, *last_shape].

        `feed` has its inputs but for keys and values: codes [rows, K, T]; lengths, positions,
        weights [rows]; past_statistics and past_last, which are what came out the call before.
        """

    def frames(self, feed: Feed) -> tuple[Floats, Floats]:
        """vocoder_stream -> windowed frames [rows, Q, n_fft], and the square of the window [n_fft].

        `feed` has its inputs but for keys and values: mel [rows, Q, n_mels]; positions, blocks,
        until [rows, Q]; past_positions and kept [rows, remembered].
        """

    def clear(self, row: int) -> None:
        """Zero a row: what is masked counts for nothing, unless it is NaN or infinite."""

    def close(self) -> None:
        """Give the memory back."""


class AudioPieces(Protocol):
    """The pieces that turn audio into codes and back."""

    bundle: Bundle

    def mel(self, wav: Floats) -> Floats:
        """wav [N] -> log-mel [1 + N // hop, n_mels]"""

    def encode(self, mel: Floats) -> Ints:
        """log-mel [T, n_mels] -> codes of all codebooks [n_q, T_code]"""

    def decode(self, codes: Ints, lengths: Ints) -> Floats:
        """codes [B, K, T], lengths [B] -> wav [B, T * samples_per_frame]"""

    def new_codec_rows(self, rows: int) -> CodecStates:
        """Fresh state of this many streams."""


class Backend(AudioPieces, Protocol):
    """Runs the pieces of one bundle."""

    @property
    def slots(self) -> int:
        """Rows that share a step, unless the caller says how many."""

    def load(self, pieces: Sequence[str]) -> None:
        """Make pieces ready, so that no later call pays for loading them."""

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

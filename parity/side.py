"""A side of a comparison: something that computes the stages of the model from given inputs."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from mimo_edge.parity.recording import Layout, Sequence
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.chat.segments import Grid
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Encoded:
    """Codes [n_q, T] of all codebooks; by how much each was nearer than the second, if known."""

    codes: Ints
    margins: Floats | None = None


@dataclass(frozen=True, eq=False)
class Forced:
    """What a side computes along a grid that is given: A patches of an answer, S of them speech.

    `codes` are what it draws itself for each speech patch; `scores`, by codebook, are those along
    the codes of the grid, where a side can tell.
    """

    embeddings: Floats | None  # [P, D], of prompt and answer
    logits: Floats  # [A, V], by which each patch's text id is chosen
    codes: Ints  # [S, G, K]
    scores: list[Floats] | None  # K x [S, G, V_k]


@dataclass(frozen=True, eq=False)
class Answered:
    """A free run: the grid [1 + K, A * G] that it generated."""

    grid: Grid
    stopped: bool
    seconds: float


@dataclass(frozen=True, eq=False)
class Streamed:
    """Sound [N] that was decoded as a stream; the samples at which one decode gives way to the
    next."""

    wav: Floats
    seams: Ints

    @classmethod
    def of(cls, parts: list[Floats]) -> "Streamed":
        """In the order in which they came; some may be empty."""
        ends = np.cumsum([len(part) for part in parts])
        inside = ends[(ends > 0) & (ends < ends[-1])]
        return cls(np.concatenate(parts), np.unique(inside).astype(np.int64))


class Side(Protocol):
    """Reference or bundle. What it cannot compute is None."""

    layout: Layout
    identity: dict[str, Any]

    def prompt(self, task: str, source: str | Ints) -> tuple[Grid, tuple[int, ...]]:
        """The prompt of a task for a text, or for codes [K, T]; and the ids that end its answer."""

    def mel(self, wav: Floats) -> Floats:
        """wav [N] -> log-mel [T, n_mels]"""

    def encode(self, mel: Floats) -> Encoded: ...

    def forced(self, grid: Grid, sequence: Sequence) -> Forced: ...

    def answer(self, prompt: Grid, sequence: Sequence) -> Answered: ...

    def answer_together(self, prompts: list[tuple[Grid, Sequence]]) -> list[Grid] | None:
        """The free runs of all, side by side in one batch."""

    def decode(self, codes: Ints) -> Floats:
        """codes [K, T] -> wav"""

    def stream(self, codes: Ints) -> Streamed | None:
        """As `decode`, in upstream's windows with its default overlaps, a patch at a time."""

    def spoken(self, text_ids: list[int]) -> str:
        """Text ids as text."""

    def measured(self) -> dict[str, Any]:
        """Size and memory, as far as they are known."""


Arrays = dict[str, NDArray[Any]]

"""Inner states by name, and what is asked for them; needs numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mimo_edge.runtime.backends.base import Floats
from numpy.typing import NDArray

HEAD_SCORES = "scores_"  # with the codebook: what a head of the patch decoder gives
CODES = "codes"  # the output of the pieces that choose
# piece -> the output that shows what comes after the last tap. Codes are no numbers to compare so.
OUTPUTS = {"patch_encoder": "embeddings", "backbone": "logits", "tokenizer_decoder": "wav"}
Feed = Mapping[str, NDArray[Any]]
Values = dict[str, list[NDArray[Any]]]  # tap or output -> its value in every run of the piece


@dataclass(frozen=True)
class Tap:
    """A place in a graph: what the norm of this name reads, or the piece's output."""

    name: str
    tensor: str

    @property
    def is_norm(self) -> bool:
        """Outputs have names without a dot."""
        return "." in self.name


class Runs(Protocol):
    """A piece that runs, and tells its inner states."""

    def run(self, taps: Sequence[Tap], feed: Feed) -> tuple[dict[str, Floats], Feed]:
        """Values of taps by name, and the piece's own outputs."""


def own_output(piece: str) -> str:
    """The output of a piece by which it is judged as a whole."""
    return OUTPUTS.get(piece, CODES)


def output_of(tap: str) -> str:
    """What the output of a tap is called."""
    return f"tap:{tap}"


def given_of(start: Tap) -> str:
    """What the input of a segment is called that takes the state at its start."""
    return f"given:{start.name}"

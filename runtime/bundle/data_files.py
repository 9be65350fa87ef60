"""Where the weights of pieces lie: in a data file of each, or of those that have the same."""

from collections.abc import Iterable

# the decode of a whole answer, and the two halves of the one that goes on: the same layers
SHARED = ("tokenizer_decoder", "mel_stream", "vocoder_stream")


def data_file(piece: str) -> str:
    """The name of the file, in a bundle that is written now; older ones have one for each piece."""
    return f"{SHARED[0] if piece in SHARED else piece}.onnx.data"


def by_data_file(pieces: Iterable[str]) -> list[list[str]]:
    """Pieces in their order, those of one data file together: they are written together."""
    found: dict[str, list[str]] = {}
    for piece in pieces:
        found.setdefault(data_file(piece), []).append(piece)
    return list(found.values())

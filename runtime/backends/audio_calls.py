"""The pieces between sound and codes, which keep nothing between calls: the same on every backend
that can run a piece."""

from typing import Any, Protocol

import numpy as np
from mimo_edge.runtime.backends.base import Feed, Floats, Ints
from mimo_edge.runtime.backends.finite import check_finite
from numpy.typing import NDArray


class AudioCalls(Protocol):
    """A base of backends: `mel`, `encode` and `decode` of `AudioPieces`, by `run`."""

    def run(self, name: str, feed: Feed) -> NDArray[Any]:
        """A piece's only output, or its first."""

    def mel(self, wav: Floats) -> Floats:
        return check_finite(self.run("mel", {"wav": wav}), "mel")

    def encode(self, mel: Floats) -> Ints:
        lengths = np.array([len(mel)], np.int64)
        codes = self.run("tokenizer_encoder", {"mel": mel[None], "lengths": lengths})[0]
        return check_finite(codes, "tokenizer_encoder")

    def decode(self, codes: Ints, lengths: Ints) -> Floats:
        wav = self.run("tokenizer_decoder", {"codes": codes, "lengths": lengths})
        return check_finite(wav, "tokenizer_decoder")

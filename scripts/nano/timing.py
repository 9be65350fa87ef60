"""When each word of a clip sounds, so that listening and reading aloud are taught word by word.

Nano's own clips are all read alike, so a word lasts about as long wherever it stands, and how long
follows from the lengths of many clips by least squares. Other voices are taken for slower or
quicker.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_SHORTEST = 0.03  # seconds; a word that is hardly said is still said
_LAST = "|"
_RIDGE = 1e-2  # decides for words that only ever come together


class WordTiming:
    """How long words last. One before a stop is another than the same without, and so is the last
    one, which no pause follows."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.mean = sum(seconds.values()) / len(seconds)

    @classmethod
    def fit(cls, spoken: Iterable[tuple[str, float]]) -> "WordTiming":
        """From texts and the seconds that each takes."""
        pairs = [(_words(text), seconds) for text, seconds in spoken]
        places: dict[str, int] = {}
        for text, _ in pairs:
            for word in text:
                places.setdefault(word, len(places))
        squares, sums = _RIDGE * np.eye(len(places)), np.zeros(len(places))
        for text, seconds in pairs:
            used = [places[word] for word in text]
            np.add.at(squares, (np.repeat(used, len(used)), np.tile(used, len(used))), 1.0)
            np.add.at(sums, used, seconds)
        lengths = np.linalg.solve(squares, sums).clip(min=_SHORTEST)
        return cls(dict(zip(places, lengths.tolist(), strict=True)))

    def ends(self, text: str, seconds: float) -> NDArray[np.float64]:
        """When each word of `text` ends, in seconds [W], if all of it takes `seconds`."""
        ends = np.cumsum([self.seconds.get(word, self.mean) for word in _words(text)])
        scaled: NDArray[np.float64] = ends * (seconds / ends[-1])
        return scaled


def _words(text: str) -> list[str]:
    *others, last = text.lower().split()
    return [*others, last + _LAST]

"""Word error rate: how far what was heard is from what was said."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

APOSTROPHES = "'\u2019"  # typed and typeset: what they join is one word


@dataclass
class WordErrors:
    """Counts over many utterances."""

    edits: int = 0
    words: int = 0  # said
    right: int = 0  # utterances without an edit
    utterances: int = 0

    def add(self, heard: str, said: str) -> int:
        """Count one utterance; returns its edits."""
        wrong = edits(words(heard), words(said))
        self.edits += wrong
        self.words += len(words(said))
        self.right += wrong == 0
        self.utterances += 1
        return wrong

    @property
    def rate(self) -> float:
        """Edits per word said; above 1 if more was heard than said. Of no words said, whatever was
        heard is all wrong: 1, or 0 if nothing was."""
        return self.edits / self.words if self.words else float(self.edits > 0)

    @property
    def right_rate(self) -> float:
        """The share of utterances without an edit."""
        return self.right / max(1, self.utterances)


def words(text: str) -> list[str]:
    """The words that count: small letters, no punctuation; each Chinese or Japanese character is a
    word of its own, so that there the rate is the usual character error rate."""
    spaced = []
    for char in unicodedata.normalize("NFKC", text).lower():
        if not char.isalnum():
            spaced.append("" if char in APOSTROPHES else " ")
        elif unicodedata.east_asian_width(char) in "WF":
            spaced.append(f" {char} ")
        else:
            spaced.append(char)
    return "".join(spaced).split()


def edits(heard: Sequence[str], said: Sequence[str]) -> int:
    """Insertions, deletions and substitutions between two rows of words."""
    row = np.arange(len(said) + 1)
    for i, word in enumerate(heard, start=1):
        previous, row = row, np.empty_like(row)
        row[0] = i
        for j, other in enumerate(said, start=1):
            change = previous[j - 1] + (word != other)
            row[j] = min(change, previous[j] + 1, row[j - 1] + 1)
    return int(row[-1])

"""The script that a text is written in, by the names of its characters."""

import unicodedata
from collections import Counter

_NAMES = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
NONE = "none"


def script_of(text: str) -> str:
    """Latin, Han, Kana, Cyrillic, ...: that of most letters. Kana wins over Han, which Japanese
    mixes in. "none" for a text without letters."""
    words = (unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    counts = Counter(_NAMES.get(word, word.capitalize()) for word in words)
    if "Kana" in counts and counts.most_common(1)[0][0] == "Han":
        return "Kana"
    return counts.most_common(1)[0][0] if counts else NONE

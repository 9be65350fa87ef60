"""What of an answer's text is thought, and what is said: "<think>why</think>what"."""

from collections.abc import Iterator

OPEN, CLOSE = "<think>", "</think>"


def split_thinking(text: str, *, opened: bool = False) -> tuple[str, str]:
    """(thinking, answer) of a whole text, both stripped.

    `opened`: the prompt ended with "<think>", so the text starts inside the thought; then a text
    that never ends it is all thought. Without any tag there is only an answer.
    """
    before, tag, rest = text.partition(OPEN)
    if not tag:
        before, rest = "", text
    thought, end, after = rest.partition(CLOSE)
    if not (tag or end or opened):
        return "", text.strip()
    return thought.strip(), (before + after).strip()


class ThoughtStream:
    """The same for a text that comes in pieces: (thinking, answer) of each, either maybe empty.

    The pieces of each kind join to what `split_thinking` gives for the whole, except that a thought
    which was never opened is known only at its end, and so was an answer until then.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self._inside = opened
        self._tags = [CLOSE] if opened else [OPEN, CLOSE]  # still to come
        self._pending = ""  # may be the beginning of a tag
        self._thinking, self._answer = _Stripped(), _Stripped()

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """What a further piece of text adds."""
        self._pending += text
        while self._tags and self._tags[0] in self._pending:
            tag = self._tags.pop(0)
            before, _, self._pending = self._pending.partition(tag)
            yield self._give(before)
            self._inside = tag == OPEN
        held = _beginning(self._tags[0], self._pending) if self._tags else 0
        ready, self._pending = _cut(self._pending, len(self._pending) - held)
        yield self._give(ready)

    def finish(self) -> tuple[str, str]:
        """What is left when no more text comes."""
        rest, self._pending = self._pending, ""
        return self._give(rest)

    def _give(self, text: str) -> tuple[str, str]:
        if self._inside:
            return self._thinking.feed(text), ""
        return "", self._answer.feed(text)


class _Stripped:
    """A text in pieces, stripped as a whole: blanks at its end wait for what may follow."""

    def __init__(self) -> None:
        self._begun, self._blanks = False, ""

    def feed(self, text: str) -> str:
        text = self._blanks + text if self._begun else text.lstrip()
        kept = text.rstrip()
        self._begun = self._begun or bool(kept)
        self._blanks = text[len(kept) :] if self._begun else ""
        return kept


def _beginning(tag: str, text: str) -> int:
    """How many characters at the end of a text may be the beginning of a tag."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


def _cut(text: str, at: int) -> tuple[str, str]:
    return text[:at], text[at:]

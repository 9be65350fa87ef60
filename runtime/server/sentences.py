"""Sentences of a text that comes in pieces: each can be spoken while the next is being written."""

import re

LEAST, MOST = 12, 400  # characters
# Latin ends want a space behind them ("3.5"), Chinese ones do not
_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s|[。！？]+[”’」』）]*|\n")


class Sentences:
    """Collects text. A very short sentence is given out with the one after it."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """The sentences that are whole now."""
        self._rest += text
        found = []
        while (end := self._end()) is not None:
            sentence, self._rest = self._rest[:end].strip(), self._rest[end:]
            if sentence:
                found.append(sentence)
        return found

    def finish(self) -> str:
        """What is left, maybe nothing."""
        rest, self._rest = self._rest.strip(), ""
        return rest

    def _end(self) -> int | None:
        for match in _END.finditer(self._rest):
            if len(self._rest[: match.end()].strip()) >= LEAST:
                return min(match.end(), self._cut()) if match.end() > MOST else match.end()
        return self._cut() if len(self._rest) > MOST else None

    def _cut(self) -> int:
        """Where a sentence without end is cut: at its last space, if it has one."""
        return self._rest.rfind(" ", LEAST, MOST) + 1 or MOST

"""Spoken answers that a later turn may refer to by their id."""

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from mimo_edge.runtime.backends.base import Ints

MOST, SECONDS = 256, 3600


@dataclass(frozen=True, eq=False)
class Spoken:
    """What was said, and how it sounded."""

    text: str
    codes: Ints  # [K, T]
    expires: int  # seconds since 1970


class SpokenAnswers:
    """The last answers of a server; each is kept for an hour."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Spoken] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def new_id() -> str:
        """An id that nobody can guess."""
        return f"audio_{secrets.token_hex(16)}"

    def keep(self, name: str, text: str, codes: Ints) -> Spoken:
        """Remember an answer; the oldest gives way."""
        spoken = Spoken(text, codes, int(time.time()) + SECONDS)
        with self._lock:
            self._kept[name] = spoken
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        return spoken

    def get(self, name: str) -> Spoken | None:
        """The answer of this id, if it is still known."""
        with self._lock:
            spoken = self._kept.get(name)
        return spoken if spoken is not None and spoken.expires >= time.time() else None

"""How many patches are collected before the next decode of a stream.

A decode costs less for each patch the more of them it takes, and sounds later. So chunks begin with
one patch and grow as far as the sound that is still to be played covers the time until the next one
comes. In the stateful decode what sounds does not depend on the chunks.
"""

from collections.abc import Callable

from mimo_edge.runtime.audio.player import Player

MOST_PATCHES = 6  # about a second of speech
SAFETY = 0.7  # of the sound ahead, how much may be spent on waiting


class GrowingChunks:
    """Chunk sizes for the speed that is measured while the stream runs."""

    def __init__(self, most: int = MOST_PATCHES) -> None:
        self._most, self._player = most, Player()
        self._patch = 0.0  # seconds that the newest patches took, each
        self._decode = 0.0  # seconds that a decode took for each patch of it, at most of late
        self.wanted = 1  # patches to collect

    def patch(self, seconds: float) -> None:
        """A patch was generated."""
        self._patch = max(seconds, 0.5 * (self._patch + seconds))

    def decoded(self, now: float, patches: int, seconds: float, sound: float) -> None:
        """At `now` a decode of so many patches ended: what it took, and the sound it gave."""
        each = seconds / max(1, patches)
        self._decode = max(each, 0.5 * (self._decode + each))
        self._player.give(now, sound)
        cost = self._patch + self._decode
        room = SAFETY * self._player.ahead(now)
        self.wanted = max(1, min(self._most, int(room / cost))) if cost else self._most


class FixedChunks:
    """Always as many patches."""

    def __init__(self, patches: int) -> None:
        self.wanted = patches

    def patch(self, seconds: float) -> None:
        """Speed does not matter."""

    def decoded(self, now: float, patches: int, seconds: float, sound: float) -> None:
        """Nor does what was decoded."""


Chunks = FixedChunks | GrowingChunks


def rehearse(
    chunks: Chunks,
    patches: int,
    patch_seconds: float,
    decode: Callable[[int, int], tuple[float, float]],
    start: float = 0.0,
) -> Player:
    """Play a stream on a clock of its own: patches come from `start` on, every `patch_seconds`.

    `decode(patches, taken)` says what a decode of so many patches after `taken` takes, and the
    seconds of sound that it gives.
    """
    player, now, taken, waiting = Player(), start, 0, 0
    for _ in range(patches):
        now += patch_seconds
        chunks.patch(patch_seconds)
        waiting += 1
        if waiting >= chunks.wanted:
            seconds, sound = decode(waiting, taken)
            now += seconds
            chunks.decoded(now, waiting, seconds, sound)
            player.give(now, sound)
            taken, waiting = taken + waiting, 0
    return player

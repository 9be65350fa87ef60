"""A player that exists in thought: when a stream would sound, and when it would fall silent."""

from dataclasses import dataclass, field


@dataclass
class Player:
    """Plays what it is given as soon as it can. All times are seconds on one clock.

    `started`: when the answer was asked for. An underrun is a silence between the first sound and
    the last: the player had nothing left, and more came later.
    """

    started: float = 0.0
    first_sound: float | None = None
    underruns: list[float] = field(default_factory=list)  # how long each silence was
    _empty_at: float = 0.0

    def give(self, now: float, seconds: float) -> None:
        """So much sound arrives."""
        if seconds <= 0:
            return
        if self.first_sound is None:
            self.first_sound = self._empty_at = now
        if now > self._empty_at:
            self.underruns.append(now - self._empty_at)
            self._empty_at = now
        self._empty_at += seconds

    def ahead(self, now: float) -> float:
        """Seconds of sound that are still to be played; 0 before the first, or in a silence."""
        return 0.0 if self.first_sound is None else max(0.0, self._empty_at - now)

    @property
    def time_to_first_sound(self) -> float | None:
        return None if self.first_sound is None else self.first_sound - self.started

    @property
    def silence(self) -> float:
        """Seconds of all underruns together."""
        return sum(self.underruns)

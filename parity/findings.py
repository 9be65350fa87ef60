"""What a bisection has found: the layers that it compared, and where it broke."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One tap compared: how near the state is, in dB."""

    stage: str
    tap: str
    snr: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.snr >= self.allowed


@dataclass(frozen=True)
class Finding:
    """The first tap out of tolerance. `alone` is the SNR of the segment before it on the
    reference's own state, None where it is the first segment, whose input is exact."""

    stage: str
    tap: str
    after: str | None  # the tap before it, still in tolerance
    snr: float
    allowed: float
    alone: float | None
    weights: tuple[str, ...]  # of the segment

    @property
    def born(self) -> bool:
        """Whether the error was born in the segment; else it arrived, and grew there."""
        return self.alone is None or self.alone < self.allowed

    def sentence(self) -> str:
        """For people."""
        start = "its input" if self.after is None else self.after
        how = "was born there" if self.born else "arrived from before and grew"
        return (
            f"{self.stage}: between {start} and {self.tap} ({self.snr:.1f} dB, "
            f"{self.allowed:g} allowed); the error {how}"
        )


@dataclass(frozen=True)
class Bisected:
    """All of it."""

    findings: tuple[Finding, ...]
    layers: tuple[Layer, ...]

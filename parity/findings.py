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
    reference's own state, None where it is the first segment, whose input is exact, or where it
    could not be run alone."""

    stage: str
    tap: str
    after: str | None  # the tap before it, still in tolerance
    snr: float
    allowed: float
    alone: float | None
    weights: tuple[str, ...]  # of the segment

    @property
    def born(self) -> bool | None:
        """Whether the error was born in the segment; else it arrived, and grew there. None where
        that is not known."""
        if self.alone is None:
            return True if self.after is None else None
        return self.alone < self.allowed

    def sentence(self) -> str:
        """For people."""
        start = "its input" if self.after is None else self.after
        how = "the error was born there" if self.born else "the error arrived from before and grew"
        if self.born is None:
            how = "whether the error was born there is not known"
        return (
            f"{self.stage}: between {start} and {self.tap} ({self.snr:.1f} dB, "
            f"{self.allowed:g} allowed); {how}"
        )


@dataclass(frozen=True)
class Apart:
    """How far two computations of one output are apart: numbers in dB and by the largest
    difference, codes by how many differ."""

    snr: float | None
    largest: float | None
    differ: int | None

    def phrase(self) -> str:
        """For people."""
        if self.differ is not None:
            return f"{self.differ} codes differ"
        return f"{self.snr:.1f} dB, largest difference {self.largest:.2g}"


@dataclass(frozen=True)
class TappedEngine:
    """An engine of TensorRT that was built to look at one tap. It is another engine than that of
    the build: how far its own output is from that one's tells whether it says anything of it."""

    stage: str
    tap: str
    snr: float  # of the tap, against the reference
    allowed: float
    output: str  # which of the piece's own outputs is compared
    own: Apart  # of that output, from the engine of the build
    wrong: bool  # whether that output is still out of tolerance

    def sentence(self) -> str:
        """For people."""
        kept = "as wrong as without it" if self.wrong else "no longer wrong"
        return (
            f"with {self.tap} as an output: {self.snr:.1f} dB there, {self.allowed:g} allowed; "
            f"{self.output} is {kept} ({self.own.phrase()} from the engine of the build)"
        )


@dataclass(frozen=True)
class Bisected:
    """All of it. `notes` say for people what a search on TensorRT did, and what it could not."""

    findings: tuple[Finding, ...]
    layers: tuple[Layer, ...] = ()
    engines: tuple[TappedEngine, ...] = ()
    notes: tuple[str, ...] = ()

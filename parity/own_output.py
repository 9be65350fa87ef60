"""What a piece itself gives: by it an engine that shows more is held against that of the build."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mimo_edge.parity.findings import Apart
from mimo_edge.parity.tap import CODES
from mimo_edge.parity.tolerances import worst_snr
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True, eq=False)
class OwnOutput:
    """One output, by every run: of the engine of the build, and the reference's."""

    name: str
    as_it_is: Arrays
    theirs: Arrays
    allowed: float  # dB

    @property
    def near(self) -> float:
        """How near numbers of the build are to the reference, in dB."""
        return worst_snr(self.as_it_is, self.theirs)

    def is_wrong(self, values: Arrays | None = None) -> bool:
        """Whether the build's, or those of another engine, are out of tolerance. Codes are if they
        are nearer to those of the build than to the reference's: of near ties, some always
        differ."""
        values = self.as_it_is if values is None else values
        if self.name != CODES:
            return worst_snr(values, self.theirs) < self.allowed
        return _differ(values, self.theirs) > _differ(values, self.as_it_is)

    def apart(self, values: Arrays) -> Apart:
        """How far those of another engine are from the build's."""
        if self.name == CODES:
            return Apart(None, None, _differ(values, self.as_it_is))
        pairs = zip(values, self.as_it_is, strict=True)
        largest = max(float(np.abs(a - b).max(initial=0)) for a, b in pairs)
        return Apart(worst_snr(values, self.as_it_is), largest, None)


def _differ(mine: Arrays, theirs: Arrays) -> int:
    """How many codes do."""
    return sum(
        int(np.sum(a.ravel() != b.ravel())) if a.size == b.size else max(a.size, b.size)
        for a, b in zip(mine, theirs, strict=True)
    )

"""Long work as stages of known cost, so that what is said of the time left comes true.

A cost is what a stage takes in nanoseconds on one core of the machine where these were measured.
Only their ratios count: the time left is reckoned at the rate of the run itself.
"""

import os
from collections.abc import Callable, Mapping

from mimo_edge.engines.recipe import Form
from mimo_edge.engines.schemes import ACTIVATION_AWARE

# (what is being done, cost done, cost in all), both of this run
OnWork = Callable[[str, int, int], None]

HASH = 0.57  # a byte
TRACE = 62e6  # a tensor of the piece
TRACE_BLOCKS = 126e6  # the same where attention is computed in blocks
TRACE_LEAST = 2e9  # a piece
# a byte of floats that is cast, hashed and written: as it lies, or turned to [inputs, outputs]
COPY, TURN = 1.6, 3.5
# a number whose code and scale are found, by all cores
_QUANTISE = {
    ("int4", "nearest"): 7.0,
    ("int4", "search"): 19.0,
    ("int8", "nearest"): 3.5,
    ("int8", "search"): 12.0,
    ("fp8", "nearest"): 19.0,
    ("fp8", "search"): 46.0,
}
# a number of the outputs on which a scaling is tried, by all cores and with all candidates
_SCALE = {"int4": 95.0, "int8": 90.0, "fp8": 130.0}
# a code that is then laid out, hashed and written, by one core: as it lies, or turned
_PUT, _PUT_TURNED = 1.5, 7.0
# of a build for ONNX Runtime, a byte of codes: laid out anew, packed for the processor, loaded
LAY_OUT, PACK, LOAD = 9.0, 5.5, 1.5


class Work:
    """What a run has to do, and how much of it is done."""

    def __init__(self, costs: Mapping[str, float], on_work: OnWork = lambda *_: None) -> None:
        self._costs, self._on_work = dict(costs), on_work
        self._parts: dict[str, Callable[[], float]] = {}

    @property
    def total(self) -> int:
        return round(sum(self._costs.values()))

    @property
    def done(self) -> int:
        parts = self._parts.items()
        return round(sum(min(1.0, part()) * self._costs[stage] for stage, part in parts))

    def drop(self, stage: str) -> None:
        """It is done already, or need not be: no work of this run."""
        self._costs.pop(stage, None)

    def watch(self, stage: str, part: Callable[[], float]) -> None:
        """Let `part` say, when asked, how much of a stage is done, of 1."""
        self._parts[stage] = part

    def reach(self, stage: str, part: float, what: str = "") -> None:
        """So much of a stage is done, of 1. It is called `what`, or as the stage is."""
        self._parts[stage] = lambda: part
        self.say(what or stage)

    def end(self) -> None:
        """All of it is done."""
        self._on_work("done", self.total, self.total)

    def say(self, what: str) -> None:
        """What is being done."""
        self._on_work(what, self.done, self.total)


def scaling_of(piece: str) -> str:
    """The stage in which it is found out what calibration makes of a piece."""
    return f"scaling {piece}"


def scaling_cost(form: Form | None, numbers: int) -> float:
    """Cost of finding what calibration makes of a matrix, tried on so many of its numbers."""
    if form is None or form.method != ACTIVATION_AWARE:
        return 0.0
    return numbers * _SCALE[form.scheme] / (os.cpu_count() or 1)


def writing(form: Form | None, width: int, as_it_lies: bool) -> float:
    """Cost of a number that comes from floats, in a form or, None, in floats of so many bytes."""
    if form is None:
        return (COPY if as_it_lies else TURN) * width
    method = "search" if form.method == ACTIVATION_AWARE else form.method
    finding = _QUANTISE[form.scheme, method] / (os.cpu_count() or 1)
    return finding + (_PUT if as_it_lies else _PUT_TURNED)

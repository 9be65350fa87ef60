"""What a bench has found."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from mimo_edge.scripts.benchmark.foretold import Foretold
from mimo_edge.scripts.benchmark.held import Held
from mimo_edge.scripts.benchmark.speech import Answer
from mimo_edge.scripts.benchmark.stages import Stage


@dataclass(frozen=True)
class Growth:
    """One patch where rows hold more, or are more."""

    rows: int
    context: int
    median_ms: float
    p95_ms: float
    held: Held


@dataclass(frozen=True)
class Report:
    """All that was measured."""

    backend: str
    read_gb_per_s: float
    load_seconds: float
    most_held: Held
    overhead_share: float  # of a generated patch, what is not the backend's
    stages: list[Stage]
    foretold: list[Foretold]  # by `plan`, where it knows this machine
    growth: list[Growth]
    answer: Answer | None
    reference: list[Stage]

    def to_raw(self) -> dict[str, Any]:
        """As it stands in JSON."""
        raw = dataclasses.asdict(self)
        for stage, entry in zip(self.stages, raw["stages"], strict=True):
            entry["gb_per_s"] = stage.gb_per_s
        for told, entry in zip(self.foretold, raw["foretold"], strict=True):
            entry["off"] = told.off
        return raw

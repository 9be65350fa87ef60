"""What `mimo-edge plan` foretells of a patch on this machine, beside what it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from mimo_edge.engines.plan.devices import Device
from mimo_edge.engines.plan.prediction import predict
from mimo_edge.engines.plan.workload import of_bundle
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import DTYPES
from mimo_edge.scripts.benchmark.stages import Stage


@dataclass(frozen=True)
class Foretold:
    """Of one stage, in milliseconds."""

    stage: str
    foretold_ms: float
    measured_ms: float  # the median

    @property
    def off(self) -> float:
        """By how much of the measured time it is off: 0.1 is a tenth too long."""
        return self.foretold_ms / self.measured_ms - 1


def foretold(
    bundle: Bundle,
    running: Bundle,
    device: Device,
    rows: int,
    positions: int,
    patch: Sequence[Stage],
) -> list[Foretold]:
    """Step, patch decoder, and both, as `stages.patch_stages` has measured them.

    `running` is what the backend made of the bundle: it says what keys and values are kept in.
    """
    workload = of_bundle(bundle).keeping(DTYPES[running.manifest.cache_dtype].bytes)
    own = predict(workload, device, positions, rows)
    seconds = own.step, own.patch_decoder, own.patch
    return [
        Foretold(stage.stage, 1e3 * each, stage.median_ms)
        for stage, each in zip(patch, seconds, strict=True)
    ]

"""A model on a device: whether it fits and runs there, how fast, and what to do if not."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mimo_edge.engines.plan.devices import Device
from mimo_edge.engines.plan.memory import Need, advice, need
from mimo_edge.engines.plan.prediction import Prediction, predict
from mimo_edge.engines.plan.workload import Workload


@dataclass(frozen=True)
class Load:
    """What is asked of a device."""

    positions: int  # patches that each row holds
    rows: int
    audio_seconds: float  # of the longest recording


@dataclass(frozen=True)
class OnDevice:
    """`remedy` is None where the model fits and runs."""

    device: Device
    workload: Workload
    need: Need
    prediction: Prediction
    remedy: str | None


def on_device(
    workload: Workload,
    device: Device,
    load: Load,
    smaller: Callable[[], Iterable[Workload]] = list,
) -> OnDevice:
    """`smaller` gives the same model by other recipes, the largest first; it is called only if
    this one does not fit."""
    own = need(workload, device, load.positions, load.rows, load.audio_seconds)
    remedy = device.refuses(workload.compute, workload.schemes)
    if remedy is None and not own.fits:
        others = (
            (other.recipe, need(other, device, load.positions, load.rows, load.audio_seconds))
            for other in smaller()
            if device.refuses(other.compute, other.schemes) is None
        )
        remedy = advice(own, load.rows, others)
    prediction = predict(workload, device, load.positions, load.rows)
    return OnDevice(device, workload, own, prediction, remedy)

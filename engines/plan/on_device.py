"""A model on a device: whether it fits and runs there, how fast, and what to do if not."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mimo_edge.engines.components import TABLES
from mimo_edge.engines.plan.devices import CPU, Device
from mimo_edge.engines.plan.memory import Need, advice, need
from mimo_edge.engines.plan.prediction import Prediction, predict
from mimo_edge.engines.plan.workload import Held, Workload

SHORTER = (30.0, 20.0, 10.0)  # seconds of recordings that are proposed where longer do not fit


@dataclass(frozen=True)
class Load:
    """What is asked of a device."""

    positions: int  # patches that each row holds
    rows: int
    audio_seconds: float  # of the longest recording


@dataclass(frozen=True)
class OnDevice:
    """`remedy` is None where the model fits and runs; `note` says why it is needlessly slow."""

    device: Device
    workload: Workload
    need: Need
    prediction: Prediction
    remedy: str | None
    note: str | None


def on_device(
    workload: Workload,
    device: Device,
    load: Load,
    smaller: Callable[[], Iterable[Workload]] = list,
) -> OnDevice:
    """`smaller` gives the same model by other recipes, the largest first; it is called only if
    this one does not fit."""

    def needed(model: Workload, seconds: float) -> Need:
        return need(model, device, load.positions, load.rows, seconds)

    own = needed(workload, load.audio_seconds)
    remedy = device.refuses(workload.compute, workload.schemes)
    if remedy is None and not own.fits:
        others = (
            (other.recipe, needed(other, load.audio_seconds))
            for other in smaller()
            if device.refuses(other.compute, other.schemes) is None and _note(other, device) is None
        )
        shorter = (s for s in SHORTER if s < load.audio_seconds and needed(workload, s).fits)
        remedy = advice(own, load.rows, next(shorter, None), others)
    prediction = predict(workload, device, load.positions, load.rows)
    return OnDevice(device, workload, own, prediction, remedy, _note(workload, device))


def _note(workload: Workload, device: Device) -> str | None:
    if device.backend != CPU or not any(p.quantized and not p.dynamic for p in _products(workload)):
        return None
    return (
        f"recipe {workload.recipe} multiplies quantised weights with floats, which a CPU does "
        'slowly: take one with activations = "dynamic", as int4-edge has'
    )


def _products(workload: Workload) -> Iterator[Held]:
    return (part for (_, name), part in workload.held.items() if name not in TABLES)

"""Devices: what they have, what runs on them, and how much of their figures becomes work.

The figures are data, `devices.toml`, with the source of each.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mimo_edge.engines.runnable import FP8_CAPABILITY
from mimo_edge.runtime.bundle.errors import InputError

TABLE = Path(__file__).parent / "devices.toml"
GB = 1e9
HERE = "here"  # the name of the machine that this runs on
CPU = "ort-cpu"
# ONNX Runtime's rounded products against numpy's in float32, measured here: 1.9 on a quiet machine,
# 2.4 to 4.5 on a busy one, where numpy loses more
INT8_PER_FP32 = 2.5


@dataclass(frozen=True)
class Efficiency:
    """What a backend makes of a device; `devices.toml` explains each figure."""

    read: float
    float_read: float
    cache: float
    compute: float
    float_compute: float
    exact: float
    rows: float
    hidden: float
    layer_us: float
    base_gb: float
    packed: float
    source: str


@dataclass(frozen=True)
class Device:
    """A device's figures: GB, GB/s, and 1e12 dense operations a second, 0 for what it has not."""

    name: str
    title: str
    backend: str
    memory_gb: float
    reserved_gb: float
    bandwidth_gb_s: float
    source: str
    fp32: float
    fp16: float = 0.0
    int8: float = 0.0
    fp8: float = 0.0
    compute_capability: str | None = None  # of a GPU

    @property
    def efficiency(self) -> Efficiency:
        return _table()[1][self.backend]

    @property
    def target(self) -> str:
        """What `mimo-edge pack --target` calls it."""
        named = self.backend == "trt-rtx"
        return f"{self.backend}:{self.compute_capability}" if named else self.backend

    @property
    def available_bytes(self) -> float:
        """Memory that a model may fill."""
        return (self.memory_gb - self.reserved_gb) * GB

    def refuses(self, compute: str, schemes: frozenset[str]) -> str | None:
        """Why a model in this precision, with weights of these schemes, cannot run here; or None.

        It says what can.
        """
        if self.backend == CPU:
            if compute == "bf16":
                return (
                    "ONNX Runtime's CPU backend has no bf16: take fp32, or a recipe of int8 or int4"
                )
            if "fp8" in schemes:
                return "no processor multiplies fp8: take the recipe int8 or int4"
            return None
        if "fp8" in schemes and float(self.compute_capability or 0) < FP8_CAPABILITY:
            return (
                f"fp8 takes compute capability {FP8_CAPABILITY}, this GPU has "
                f"{self.compute_capability}: take the recipe int8 or int4"
            )
        return None


def names() -> tuple[str, ...]:
    """Of the devices in the table, in its order."""
    return tuple(_table()[0])


def device(name: str) -> Device:
    """Raises InputError for a device that is not in the table."""
    try:
        return _table()[0][name]
    except KeyError:
        raise InputError(
            f"there is no device {name!r} in the table; choose one of {', '.join(names())}, or "
            f"{HERE} for this machine"
        ) from None


def this_machine(
    bandwidth: float, operations: float, memory: float | None, cores: int | None
) -> Device:
    """The machine that this runs on, from measurements: bytes read and float32 operations a second,
    and bytes of its memory, if the system says."""
    return Device(
        name=HERE,
        title=f"this machine, {cores or 1} cores",
        backend=CPU,
        memory_gb=(memory or 0) / GB,
        reserved_gb=0.0,
        bandwidth_gb_s=bandwidth / GB,
        source="measured now",
        fp32=operations / 1e12,
        int8=INT8_PER_FP32 * operations / 1e12,
    )


@cache
def _table() -> tuple[Mapping[str, Device], Mapping[str, Efficiency]]:
    raw = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    devices = [Device(**entry) for entry in raw["devices"]]
    efficiencies = {name: Efficiency(**entry) for name, entry in raw["backends"].items()}
    return {entry.name: entry for entry in devices}, efficiencies

"""Does a model fit a device: weights, cache, activations, and the program around them."""

from collections.abc import Iterable
from dataclasses import dataclass

from mimo_edge.engines.components import TABLES
from mimo_edge.engines.plan.devices import CPU, GB, Device
from mimo_edge.engines.plan.prediction import CODEC_RATE, capacity, loaded_bytes
from mimo_edge.engines.plan.workload import Workload
from mimo_edge.runtime.bundle.manifest import AUDIO_SECONDS

_CODEC_HEAD = 64  # width of a head of the released audio tokenizer
_CHUNK = 256  # positions of a prompt that are read at once
_LIVE = 12  # states of a layer that are in memory at the same time, in widths of the backbone
_FLOAT = 4


@dataclass(frozen=True)
class Need:
    """Bytes that a model takes on a device, and how many it has for them."""

    weights: float
    cache: float
    activations: float
    base: float
    available: float
    most_positions: int  # that fit for so many rows, at most the context; 0 if none do

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.activations + self.base

    @property
    def fits(self) -> bool:
        return self.total <= self.available


def need(
    workload: Workload,
    device: Device,
    positions: int,
    rows: int = 1,
    audio_seconds: float = AUDIO_SECONDS,
) -> Need:
    """What is needed for rows of so many positions, and recordings of at most so many seconds."""
    sizes, own = workload.sizes, device.efficiency
    weights = _weights(workload, device)
    position = 2 * workload.layers.get("backbone", 0) * sizes.kv_width * sizes.cache_bytes
    cache = rows * position * capacity(positions, device, sizes.context)
    activations = _activations(workload, device, rows, audio_seconds)
    base = own.base_gb * GB
    left = device.available_bytes - weights - activations - base
    most = _most_positions(left / (rows * position), device, sizes.context)
    return Need(weights, cache, activations, base, device.available_bytes, most)


def advice(
    need: Need, rows: int, seconds: float | None, others: Iterable[tuple[str, Need]]
) -> str | None:
    """What to do where a model does not fit; None where it does.

    `seconds` of recordings with which it fits, if it does with any; `others` are what other recipes
    need, the best first: one that fits is named.
    """
    if need.fits:
        return None
    lacks = f"lacks {(need.total - need.available) / GB:.1f} GB"
    if seconds is not None:
        return f"{lacks}: take --audio-seconds {seconds:g}, and encode longer recordings in pieces"
    if need.most_positions >= 2:
        return f"{lacks}: take --positions {need.most_positions}"
    fewer = None
    for name, other in others:
        if other.fits:
            return f"{lacks}: take --recipe {name}"
        if fewer is None and other.most_positions >= 2:
            fewer = f"{lacks}: take --recipe {name} --positions {other.most_positions}"
    return fewer or f"{lacks}: " + ("take fewer rows" if rows > 1 else "nothing smaller is known")


def _weights(workload: Workload, device: Device) -> float:
    """As they lie in memory while a model listens and speaks."""
    cpu = device.backend == CPU
    total = 0.0
    for (piece, component), held in workload.held.items():
        if cpu and piece == "tokenizer_decoder":
            continue  # the same weights as in the pieces that stream, of which a session is made
        if not cpu and component in TABLES and held.quantized:
            total += held.numbers * held.float_bytes  # TensorRT gathers no int8
        elif cpu and held.quantized and component not in TABLES and not held.by_rows:
            total += held.bytes * device.efficiency.packed
        else:
            total += loaded_bytes(held, cpu)
    return total


def _activations(workload: Workload, device: Device, rows: int, audio_seconds: float) -> float:
    """The larger of a prompt's chunk and of encoding: they do not run at the same time.

    In float32 attention of the audio tokenizer has the scores of a whole recording in memory, and
    what they become; in 16 bits a GPU has kernels that keep neither.
    """
    sizes, cpu = workload.sizes, device.backend == CPU
    wide = _FLOAT if cpu or workload.compute == "fp32" else 2
    scores = rows * sizes.vocab_size * _FLOAT
    chunk = _CHUNK * _LIVE * sizes.hidden_size * wide
    positions = CODEC_RATE * audio_seconds / sizes.frame_seconds
    encoding = positions * _LIVE * workload.codec_width * wide
    if wide == _FLOAT:
        heads = max(1, workload.codec_width // _CODEC_HEAD)
        encoding += 2 * heads * positions * positions * _FLOAT
    return float(scores + max(chunk, encoding))


def _most_positions(room: float, device: Device, context: int) -> int:
    if room < 2:
        return 0
    if device.backend != CPU or room >= context:
        return min(int(room), context)
    held = 256
    while 2 * held <= room:
        held *= 2
    return held if held <= room else 0

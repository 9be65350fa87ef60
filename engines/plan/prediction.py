"""How fast a model will be: what each piece must read and compute, over what a device does of both.

    seconds of a run = weights / read rate + cache / cache rate + layers * overhead, and arithmetic

On a GPU arithmetic overlaps with reading: the longer of the two counts. A CPU hides a part of one
position's arithmetic behind its reading, and adds the rest. `devices.toml` has every rate.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mimo_edge.engines.components import TABLES
from mimo_edge.engines.plan.devices import CPU, GB, Device
from mimo_edge.engines.plan.workload import Held, Workload

PROMPT = 256  # patches of the prompt whose prefill is foretold: 41 s of audio
ENCODED_SECONDS = 4.0
CHUNK = 4  # patches that a stream decodes at once when it runs
CODEC_RATE = 2  # positions of the audio tokenizer's layers for a code frame
_VOCODER_RATE = 4
_STREAMED = {"mel_stream": CODEC_RATE, "vocoder_stream": _VOCODER_RATE}
EXACT_PRODUCTS = "exact"  # of quantised weights with floats, on a CPU
ROW_PRODUCTS = "rows"  # of int8 with a scale a row and a channel, on a CPU


@dataclass(frozen=True)
class Cost:
    """What `runs` runs of a piece read and compute in all."""

    quantized_bytes: float
    float_bytes: float
    cache_bytes: float
    operations: dict[str, float]  # by what they are computed in
    layers: int  # that run, over all runs
    positions: float  # that each run computes

    @property
    def bytes(self) -> float:
        return self.quantized_bytes + self.float_bytes + self.cache_bytes


@dataclass(frozen=True)
class Prediction:
    """Seconds on a device. Rows share a step; `patch` is step and patch decoder of all rows."""

    step: float
    patch_decoder: float
    prefill: float  # of PROMPT patches
    encode: float  # of ENCODED_SECONDS of audio
    decode: float  # of one patch of one row, in a stream
    bound: float  # of `patch`, if all bandwidth were used and nothing else counted
    patch_bytes: float
    patch_seconds: float  # of speech
    rows: int

    @property
    def patch(self) -> float:
        return self.step + self.patch_decoder

    @property
    def rtf(self) -> float:
        """Seconds of the language model's work for a second of speech of every row."""
        return self.patch / self.patch_seconds

    @property
    def rtf_with_codec(self) -> float:
        return (self.patch + self.rows * self.decode) / self.patch_seconds


def predict(workload: Workload, device: Device, positions: int, rows: int = 1) -> Prediction:
    """How long each part takes on a device where rows hold so many positions each."""
    cpu, context = device.backend == CPU, workload.sizes.context

    def seconds(cost: Cost) -> float:
        return _seconds(cost, device)

    held = rows * capacity(positions, device, context)
    step = _step(workload, rows, held, held, cpu)
    patch = _patch_decoder(workload, rows, cpu)
    return Prediction(
        step=seconds(step),
        patch_decoder=seconds(patch),
        prefill=seconds(prefill(workload, PROMPT, cpu)),
        encode=seconds(_encode(workload, ENCODED_SECONDS, cpu)),
        decode=seconds(_decode(workload, CHUNK, cpu)) / CHUNK if workload.speaks else 0.0,
        bound=(step.bytes + patch.bytes) / (device.bandwidth_gb_s * GB),
        patch_bytes=step.bytes + patch.bytes,
        patch_seconds=workload.sizes.patch_seconds,
        rows=rows,
    )


def prefill(workload: Workload, positions: int, cpu: bool) -> Cost:
    """A prompt of so many patches, read at once into an empty row."""
    return _step(workload, positions, positions * positions / 2, positions, cpu)


def capacity(positions: int, device: Device, context: int) -> int:
    """Positions that attention goes over, and that memory is taken for, where a row holds some.

    ONNX Runtime's cache doubles from 256, and is read whole; an engine's is made for so many.
    """
    if device.backend != CPU:
        return positions
    held = 256
    while held < positions:
        held *= 2
    return min(held, max(positions, context))


def loaded_bytes(held: Held, cpu: bool) -> int:
    """Bytes as a backend reads them: ONNX Runtime's CPU backend makes float32 of 16-bit floats, and
    the build for it int8 of what is multiplied row by row."""
    if cpu and held.by_rows:
        return held.row_bytes
    widened = cpu and held.float_bytes == 2 and not held.quantized
    return 2 * held.bytes if widened else held.bytes


def _step(model: Workload, positions: int, attended: float, cached: float, cpu: bool) -> Cost:
    """A run of patch encoder and backbone over new positions, which attend to so many in all, and
    read so many from the cache."""
    sizes, layers = model.sizes, model.layers.get("backbone", 0)
    work = [
        (part, float(sizes.group_size * positions))
        for part in model.of("patch_encoder", without=TABLES)
    ]
    work += [(part, float(positions)) for part in model.of("backbone")]
    attention = "fp32" if cpu else model.compute, 4.0 * layers * sizes.query_width * attended
    return _cost(
        work,
        layers + model.layers.get("patch_encoder", 0),
        positions,
        cpu,
        cache_bytes=2.0 * layers * sizes.kv_width * sizes.cache_bytes * cached,
        attention=attention,
    )


def _patch_decoder(model: Workload, rows: int, cpu: bool) -> Cost:
    """All sub-steps of a patch. Its own cache is small, and its tables are looked up."""
    work = [(part, float(rows)) for part in model.of("patch_decoder", without=TABLES)]
    layers = model.layers.get("patch_decoder", 0)
    return _cost(work, layers, rows, cpu, runs=model.sizes.sub_steps)


def _encode(model: Workload, seconds: float, cpu: bool) -> Cost:
    positions = round(CODEC_RATE * seconds / model.sizes.frame_seconds)
    work = [(part, float(positions)) for part in model.of("tokenizer_encoder")]
    layers = model.layers.get("tokenizer_encoder", 0)
    attention = "fp32" if cpu else model.compute, 4.0 * layers * model.codec_width * positions**2
    return _cost(work, layers, positions, cpu, attention=attention)


def _decode(model: Workload, patches: int, cpu: bool) -> Cost:
    """A chunk of a stream: its own frames, and all weights."""
    frames = patches * model.sizes.group_size
    work = [
        (part, float(rate * frames))
        for piece, rate in _STREAMED.items()
        for part in model.of(piece)
    ]
    layers = model.layers.get("tokenizer_decoder", 0) + model.layers.get("vocoder", 0)
    return _cost(work, layers, CODEC_RATE * frames, cpu)


def _cost(
    work: Iterable[tuple[Held, float]],
    layers: int,
    positions: float,
    cpu: bool,
    *,
    runs: int = 1,
    cache_bytes: float = 0.0,
    attention: tuple[str, float] = ("fp32", 0.0),
) -> Cost:
    """Of parts that each compute so many positions: two operations a number and position."""
    operations = {attention[0]: attention[1]}
    read = {True: 0.0, False: 0.0}
    for held, count in work:
        kind = _kind(held, cpu)
        operations[kind] = operations.get(kind, 0.0) + 2.0 * runs * held.numbers * count
        read[held.quantized] += runs * loaded_bytes(held, cpu)
    return Cost(read[True], read[False], cache_bytes, operations, runs * layers, positions)


def _kind(held: Held, cpu: bool) -> str:
    """What a backend computes products in."""
    if not cpu:
        return held.computes
    if not held.quantized:
        return "fp32"
    if held.by_rows:
        return ROW_PRODUCTS
    return "int8" if held.dynamic else EXACT_PRODUCTS


def _seconds(cost: Cost, device: Device) -> float:
    own, bandwidth = device.efficiency, device.bandwidth_gb_s * GB
    reading = cost.quantized_bytes / own.read + cost.float_bytes / own.float_read
    reading = (reading + cost.cache_bytes / own.cache) / bandwidth
    computing = sum(n / _rate(kind, device) for kind, n in cost.operations.items())
    overhead = cost.layers * own.layer_us / 1e6
    if device.backend == CPU:
        hidden = own.hidden * computing / max(1.0, cost.positions)
        return reading + computing - hidden + overhead
    return max(reading, computing) + overhead


def _rate(kind: str, device: Device) -> float:
    """Operations a second. What a device has no arithmetic for is computed in a wider kind."""
    own = device.efficiency
    rates = {
        "fp32": own.float_compute * device.fp32,
        "fp16": own.compute * device.fp16,
        "bf16": own.compute * device.fp16,
        "int8": own.compute * (device.int8 or device.fp32),
        "fp8": own.compute * (device.fp8 or device.fp16),
        EXACT_PRODUCTS: own.exact * device.fp32,
        ROW_PRODUCTS: own.rows * (device.int8 or device.fp32),
    }
    return rates[kind] * 1e12

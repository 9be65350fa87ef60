"""How fast a model will be: what each piece must read and compute, over what a device does of both.

    seconds of a run = weights / read rate + cache / cache rate + layers * overhead, and arithmetic

On a GPU arithmetic overlaps with reading: the larger of the two counts. A CPU hides the arithmetic
of one row behind its reading and adds that of the others.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mimo_edge.engines.components import TABLES
from mimo_edge.engines.plan.devices import CPU, GB, Device
from mimo_edge.engines.plan.workload import Held, Workload

PROMPT = 256  # patches of the prompt whose prefill is foretold: 41 s of audio
ENCODED_SECONDS = 4.0
_CODEC_RATE = 2  # positions of the audio tokenizer's layers for a code frame
_VOCODER_RATE = 4
_STREAMED = ("mel_stream", "vocoder_stream")
# a codec's chunk, patches: what a stream decodes at once when it runs
_CHUNK = 4


@dataclass(frozen=True)
class Cost:
    """What a run of a piece, or several runs, read and compute."""

    weight_bytes: float
    cache_bytes: float
    operations: dict[str, float]  # by what they are computed in: fp32, fp16, bf16, int8, fp8
    hidden_operations: dict[str, float]  # of them, those of one position in each run
    layers: int  # runs of a layer

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes


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
    model, sizes = workload, workload.sizes

    def seconds(cost: Cost) -> float:
        return _seconds(cost, device)

    cpu = device.backend == CPU
    held = rows * capacity(positions, device, sizes.context)
    step = _step(model, rows, held, held, cpu)
    patch = _patch_decoder(model, rows, cpu)
    prefill = _step(model, PROMPT, PROMPT * PROMPT / 2, PROMPT, cpu)
    return Prediction(
        step=seconds(step),
        patch_decoder=seconds(patch),
        prefill=seconds(prefill),
        encode=seconds(_encode(model, ENCODED_SECONDS, cpu)),
        decode=seconds(_decode(model, _CHUNK, cpu)) / _CHUNK if model.speaks else 0.0,
        bound=(step.bytes + patch.bytes) / (device.bandwidth_gb_s * GB),
        patch_bytes=step.bytes + patch.bytes,
        patch_seconds=sizes.patch_seconds,
        rows=rows,
    )


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


def _step(model: Workload, positions: int, attended: float, cached: float, cpu: bool) -> Cost:
    """A run of patch encoder and backbone over new positions, which attend to so many in all, and
    read so many from the cache."""
    sizes = model.sizes
    local = list(model.of("patch_encoder", without=TABLES))
    backbone = list(model.of("backbone"))
    layers = model.layers.get("backbone", 0)
    # a patch is a few positions of the patch encoder; scores are wanted of one position a row
    work = [(held, sizes.group_size * positions) for held in local]
    work += [(held, positions) for held in backbone]
    operations = _operations(work, cpu)
    attention = 4.0 * layers * sizes.query_width * attended
    floats = "fp32" if cpu else model.compute
    operations[floats] = operations.get(floats, 0.0) + attention
    return Cost(
        weight_bytes=_read(model, (*local, *backbone), cpu),
        cache_bytes=2.0 * layers * sizes.kv_width * sizes.cache_bytes * cached,
        operations=operations,
        hidden_operations=_operations([(held, n // positions) for held, n in work], cpu)
        | {floats: attention},
        layers=layers + model.layers.get("patch_encoder", 0),
    )


def _patch_decoder(model: Workload, rows: int, cpu: bool) -> Cost:
    """All sub-steps of a patch. Its own cache is small, and its tables are looked up."""
    runs = model.sizes.sub_steps
    held = list(model.of("patch_decoder", without=TABLES))
    return Cost(
        weight_bytes=runs * _read(model, held, cpu),
        cache_bytes=0.0,
        operations=_operations([(part, runs * rows) for part in held], cpu),
        hidden_operations=_operations([(part, runs) for part in held], cpu),
        layers=runs * model.layers.get("patch_decoder", 0),
    )


def _encode(model: Workload, seconds: float, cpu: bool) -> Cost:
    positions = round(_CODEC_RATE * seconds / model.sizes.frame_seconds)
    held = list(model.of("tokenizer_encoder"))
    layers = model.layers.get("tokenizer_encoder", 0)
    operations = _operations([(part, positions) for part in held], cpu)
    floats = next(part.computes for part in held if not part.dynamic) if held else "fp32"
    attention = 4.0 * layers * model.codec_width * positions * positions
    operations[floats] = operations.get(floats, 0.0) + attention
    return Cost(_read(model, held, cpu), 0.0, operations, {}, layers)


def _decode(model: Workload, patches: int, cpu: bool) -> Cost:
    """A chunk of a stream: its own frames, and all weights."""
    frames = patches * model.sizes.group_size
    rates = {"mel_stream": _CODEC_RATE, "vocoder_stream": _VOCODER_RATE}
    work = [(part, rates[piece] * frames) for piece in _STREAMED for part in model.of(piece)]
    layers = model.layers.get("tokenizer_decoder", 0) + model.layers.get("vocoder", 0)
    return Cost(_read(model, [p for p, _ in work], cpu), 0.0, _operations(work, cpu), {}, layers)


def _read(model: Workload, parts: Iterable[Held], cpu: bool) -> float:
    """Bytes of weights that a run reads as they lie in memory."""
    return float(sum(loaded_bytes(part, cpu) for part in parts))


def loaded_bytes(held: Held, cpu: bool) -> int:
    """Bytes as a backend reads them: ONNX Runtime's CPU backend makes float32 of 16-bit floats."""
    widened = cpu and held.float_bytes == 2 and not held.quantized
    return 2 * held.bytes if widened else held.bytes


def _operations(work: Iterable[tuple[Held, float]], cpu: bool) -> dict[str, float]:
    """Two for each number and position, by what they are computed in."""
    found: dict[str, float] = {}
    for held, positions in work:
        kind = held.computes
        if cpu:
            kind = "int8" if held.dynamic and held.quantized else "fp32"
        found[kind] = found.get(kind, 0.0) + 2.0 * held.numbers * positions
    return found


def _seconds(cost: Cost, device: Device) -> float:
    own = device.efficiency
    bandwidth = device.bandwidth_gb_s * GB
    reading = cost.weight_bytes / (own.read * bandwidth) + cost.cache_bytes / (
        own.cache * bandwidth
    )
    overhead = cost.layers * own.layer_us / 1e6
    if device.backend == CPU:
        more = {k: n - cost.hidden_operations.get(k, 0.0) for k, n in cost.operations.items()}
        return reading + _arithmetic(more, device) + overhead
    return max(reading, _arithmetic(cost.operations, device)) + overhead


def _arithmetic(operations: dict[str, float], device: Device) -> float:
    rates = {"fp32": device.fp32, "fp16": device.fp16, "bf16": device.fp16}
    # what a device has no arithmetic for is computed in the next wider kind that it has
    rates |= {"int8": device.int8 or device.fp32, "fp8": device.fp8 or device.fp16}
    efficiency = device.efficiency.compute * 1e12
    return sum(n / (efficiency * rates[kind]) for kind, n in operations.items())

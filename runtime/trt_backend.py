"""TensorRT backend, for TensorRT for RTX and the classic product: one Python API.

Engines are loaded and device buffers allocated once. The key-value cache is one buffer per layer
and kind, bound as input and output of the same step. The decode step and the patch decoder run as
CUDA graphs. Per patch, the text's scores and the codes come back to the host, and nothing else.
"""

import importlib
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from runtime import engine
from runtime.backend import Floats, Ints
from runtime.bundle import PIECES, Bundle, TensorSpec
from runtime.cuda import CudaDevice
from runtime.errors import ContextError, EngineError, EnvironmentProblem, InputError, ResourceError

MODULES = {"trt-rtx": "tensorrt_rtx", "trt": "tensorrt"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}
AUDIO_PIECES = ("mel", "tokenizer_encoder", "tokenizer_decoder")


class Context:
    """One execution context of an engine. Contexts of an engine share its weights and profile."""

    def __init__(self, plan: Any, device: CudaDevice) -> None:
        self._context = plan.create_execution_context()
        self._device = device
        if self._context is None:
            raise ResourceError(
                "the GPU has no memory for an execution context. Use fewer rows or a smaller "
                "--max-seq when building."
            )
        if not self._context.set_optimization_profile_async(0, device.stream):
            raise EngineError("the engine has no profile. Build it again.")

    def bind(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        """Give a tensor its memory and, for inputs, its shape."""
        if shape is not None and not self._context.set_input_shape(name, tuple(shape)):
            raise InputError(f"{name} {list(shape)} is outside what the engine was built for")
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"the engine has no tensor {name}. Build it again.")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once the inputs have theirs."""
        return tuple(self._context.get_tensor_shape(name))

    def enqueue(self) -> None:
        """Put one run on the stream."""
        if not self._context.execute_async_v3(self._device.stream):
            raise EngineError("TensorRT could not run the engine; its log says why")


class TrtBackend:
    """Runs a bundle's engines. `trt` and `device` are replaced in tests."""

    def __init__(
        self,
        bundle: Bundle,
        product: str,
        trt: Any = None,
        device: CudaDevice | None = None,
    ) -> None:
        self.bundle, self._product = bundle, product
        self._trt = trt or _import(product)
        self.device = device or CudaDevice()
        capability = self.device.capability()
        folder, manifest = engine.find(bundle, product, self._trt.__version__, capability)
        self.identity = manifest.identity
        held = sum(spec.bytes for spec in manifest.plans.values())
        self._need(held // max(1, len(self.identity.capabilities)), "the engines' weights")
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.WARNING))
        self._plans = {p: self._load(p, (folder / f"{p}.plan").read_bytes()) for p in PIECES}
        self._buffers: dict[tuple[str, str], int] = {}
        self._contexts: dict[str, Context] = {}

    def load(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            if piece in AUDIO_PIECES:
                self._audio_context(piece)

    def mel(self, wav: Floats) -> Floats:
        return self._run("mel", {"wav": wav})

    def encode(self, mel: Floats) -> Ints:
        lengths = np.array([len(mel)], np.int64)
        return self._run("tokenizer_encoder", {"mel": mel[None], "lengths": lengths})[0]

    def decode(self, codes: Ints, lengths: Ints) -> Floats:
        samples = self.bundle.model.samples_per_frame
        wavs = np.zeros((len(codes), codes.shape[2] * samples), np.float32)
        for row, length in enumerate(lengths):
            feed = {"codes": codes[row : row + 1, :, :length], "lengths": lengths[row : row + 1]}
            wavs[row, : length * samples] = self._run("tokenizer_decoder", feed)[0]
        return wavs

    def new_rows(self, rows: int) -> "TrtRowStates":
        if rows > self.identity.max_batch:
            raise InputError(
                f"{rows} rows asked for, the engines hold {self.identity.max_batch}. "
                f"Build them with --max-batch {rows}."
            )
        return TrtRowStates(self, rows)

    def context(self, piece: str) -> Context:
        """A fresh execution context of a piece."""
        return Context(self._plans[piece], self.device)

    def allocate(self, count: int) -> int:
        """Zeroed device memory, checked against what is free."""
        self._need(count, "buffers")
        return self.device.allocate(count)

    def describe(self) -> str:
        gpu = self.device.capability()
        return f"{self._product} {self._trt.__version__} on compute capability {gpu}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.device.synchronize()  # nothing may be running when memory and engines go
        self._contexts.clear()
        self._plans.clear()
        self.device.close()

    def _run(self, piece: str, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """One call of an audio piece: upload, run, download its only output."""
        context, spec = self._audio_context(piece), self.bundle.piece(piece)
        for name, array in feed.items():
            address = self._buffers[piece, name]
            context.bind(name, address, array.shape)
            self.device.upload(address, np.ascontiguousarray(array))
        (output,) = spec.outputs
        context.enqueue()
        result = np.zeros(context.shape(output.name), output.dtype)
        self.device.download(result, self._buffers[piece, output.name])
        return result

    def _audio_context(self, piece: str) -> Context:
        """The piece's context, with buffers for the largest call its engine takes."""
        if piece not in self._contexts:
            context, spec = self.context(piece), self.bundle.piece(piece)
            for port in spec.inputs:
                largest = self.identity.profiles[piece][0][port.name][2]
                self._buffers[piece, port.name] = self.allocate(_bytes(port, largest))
                context.bind(port.name, self._buffers[piece, port.name], largest)
            for port in spec.outputs:
                size = _bytes(port, context.shape(port.name))
                self._buffers[piece, port.name] = self.allocate(size)
                context.bind(port.name, self._buffers[piece, port.name])
            self._contexts[piece] = context
        return self._contexts[piece]

    def _load(self, piece: str, plan: bytes) -> Any:
        loaded = self._runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            raise EngineError(f"TensorRT does not load the plan of {piece}. Build it again.")
        return loaded

    def _need(self, count: int, what: str) -> None:
        free = self.device.free_bytes()
        if count > free:
            raise ResourceError(
                f"{what} need {count / 1e6:.0f} MB, the GPU has {free / 1e6:.0f} MB free. "
                "Use fewer rows, a smaller --max-seq or a smaller precision."
            )


class TrtRowStates:
    """Decode state of several rows; see `runtime.backend.RowStates`.

    A row's part of every buffer is contiguous, so its prompt is prefilled in place: the same
    engine, in a context of its own, with the addresses of that row alone.
    """

    def __init__(self, backend: TrtBackend, rows: int) -> None:
        self.rows, self._backend, self._device = rows, backend, backend.device
        self.capacity = backend.identity.max_seq
        self.lengths = np.zeros(rows, np.int64)
        self._model = backend.bundle.model
        self._chunk = backend.identity.profiles["patch_encoder"][0]["text_ids"][2][1]
        self._address: dict[str, int] = {}
        self._size: dict[str, int] = {}  # bytes of one row
        self._graphs: dict[str, Any] = {}
        # buffers go with the state: an answer must not leave its cache behind
        weakref.finalize(self, _release, self._device, self._address, self._graphs)
        self._embed, self._backbone, self._draw = (
            backend.context(piece) for piece in ("patch_encoder", "backbone", "patch_decoder")
        )
        self._prefill_embed = backend.context("patch_encoder")
        self._prefill = backend.context("backbone")
        self._bind_decode()

    def prefill(self, row: int, text_ids: Ints, codes: Ints) -> Floats:
        if len(text_ids) > self.capacity:
            raise ContextError(
                f"{len(text_ids)} positions do not fit the {self.capacity} that the engines hold. "
                "Shorten the prompt, or build with a larger --max-seq."
            )
        self.lengths[row] = 0
        for start in range(0, len(text_ids), self._chunk):
            part = slice(start, start + self._chunk)
            self._run_chunk(row, text_ids[part], codes[part])
        logits = np.zeros(self._model.vocab_size, np.float32)
        self._device.download(logits, self._row("logits", row))
        return logits

    def step(self, text_ids: Ints, codes: Ints, active: NDArray[np.bool_]) -> Floats:
        if self.lengths.max() + 1 > self.capacity:
            raise ContextError(f"a row has reached the {self.capacity} positions of the engines")
        self._upload("text_ids", text_ids)
        self._upload("codes", codes)
        self._upload("past_lengths", self.lengths)
        self._run("step", self._embed, self._backbone)
        self.lengths += active
        logits = np.zeros((self.rows, self._model.vocab_size), np.float32)
        self._device.download(logits, self._address["logits"])
        return logits

    def draw_codes(self, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats) -> Ints:
        for name, array in (
            ("uniforms", uniforms),
            ("temperature", temperature),
            ("top_k", top_k),
            ("top_p", top_p),
        ):
            self._upload(name, array)
        self._run("draw", self._draw)
        codes = np.zeros((self.rows, self._model.group_size, self._model.n_q), np.int64)
        self._device.download(codes, self._address["drawn"])
        return codes

    def clear(self, row: int) -> None:
        self.lengths[row] = 0

    def _run(self, name: str, *contexts: Context) -> None:
        """Once plainly, as TensorRT asks before a capture, and from then on as a graph."""

        def work() -> None:
            for context in contexts:
                context.enqueue()

        if name in self._graphs:
            self._device.launch(self._graphs[name])
            return
        work()
        self._device.synchronize()
        self._graphs[name] = self._device.capture(work)

    def _bind_decode(self) -> None:
        """Allocate every buffer, and bind the decode contexts to them once and for all."""
        pieces = self._backend.bundle.piece
        self._bind_piece(self._embed, pieces("patch_encoder"), {"time": 1, "patches": 1})
        self._bind_piece(self._backbone, pieces("backbone"), {"time": 1})
        self._bind_piece(self._draw, pieces("patch_decoder"), {}, {"codes": "drawn"})
        self._upload("new_lengths", np.ones(self.rows, np.int64))
        # the prefill's own input buffers; everything else of it is a row's part of the above
        for piece, names in (
            ("patch_encoder", ("text_ids", "codes")),
            ("backbone", ("embeddings", "past_lengths", "new_lengths")),
        ):
            for port in pieces(piece).inputs:
                if port.name in names:
                    shape = self._shape(port, 1, {"time": self._chunk, "patches": self._chunk})
                    count = _bytes(port, shape)
                    self._address[f"prefill {port.name}"] = self._backend.allocate(count)

    def _bind_piece(
        self,
        context: Context,
        spec: Any,
        axes: dict[str, int],
        renamed: dict[str, str] | None = None,
    ) -> None:
        for side, ports in (("in", spec.inputs), ("out", spec.outputs)):
            for port in ports:
                name = _shared_name(
                    (renamed or {}).get(port.name, port.name) if side == "out" else port.name
                )
                shape = self._shape(port, self.rows, axes)
                if name not in self._address:
                    count = _bytes(port, shape)
                    self._address[name] = self._backend.allocate(count)
                    self._size[name] = count // self.rows
                context.bind(port.name, self._address[name], shape if side == "in" else None)

    def _run_chunk(self, row: int, text_ids: Ints, codes: Ints) -> None:
        count, model = len(text_ids), self._model
        self._upload("prefill text_ids", text_ids)
        self._upload("prefill codes", codes)
        self._upload("prefill past_lengths", self.lengths[row : row + 1])
        self._upload("prefill new_lengths", np.array([count], np.int64))
        embed, backbone = self._prefill_embed, self._prefill
        embed.bind("text_ids", self._address["prefill text_ids"], (1, count))
        shape = (1, count, model.n_q, model.group_size)
        embed.bind("codes", self._address["prefill codes"], shape)
        embed.bind("embeddings", self._address["prefill embeddings"])
        spec = self._backend.bundle.piece("backbone")
        for port in spec.inputs:
            if port.name.startswith("past_") and port.name != "past_lengths":
                address = self._row(_shared_name(port.name), row)
                backbone.bind(port.name, address, self._shape(port, 1, {}))
            else:
                address = self._address[f"prefill {port.name}"]
                backbone.bind(port.name, address, self._shape(port, 1, {"time": count}))
        for port in spec.outputs:
            backbone.bind(port.name, self._row(_shared_name(port.name), row))
        embed.enqueue()
        backbone.enqueue()
        self._device.synchronize()  # the next chunk overwrites the inputs
        self.lengths[row] += count

    def _shape(self, port: TensorSpec, rows: int, axes: dict[str, int]) -> tuple[int, ...]:
        sizes = {"batch": rows, "capacity": self.capacity, **axes}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.axes)

    def _row(self, name: str, row: int) -> int:
        """The address of a row's part of a buffer."""
        return self._address[name] + row * self._size[name]

    def _upload(self, name: str, array: NDArray[Any]) -> None:
        self._device.upload(self._address[name], np.ascontiguousarray(array))


def _release(device: CudaDevice, addresses: dict[str, int], graphs: dict[str, Any]) -> None:
    device.release(addresses.values(), graphs.values())


def _import(product: str) -> Any:
    try:
        return importlib.import_module(MODULES[product])
    except ImportError as error:
        raise EnvironmentProblem(
            f'{MODULES[product]} is not installed: pip install "mimo-edge[trt]" for TensorRT for '
            "RTX; classic TensorRT comes with JetPack or from NVIDIA's own index."
        ) from error


def _bytes(port: TensorSpec, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[port.dtype]


def _shared_name(name: str) -> str:
    """Past and present of a cache are one buffer."""
    cache = name.startswith(("past_keys", "past_values", "present_"))
    return "cache_" + name.split("_", 1)[1] if cache else name

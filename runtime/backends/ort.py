"""ONNX Runtime backend: the CPU by default, CUDA when asked.

Sessions are made when a piece is first needed; `ort_rows` keeps what lives between calls.
"""

import os
import re
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import onnxruntime as ort
from mimo_edge.runtime.backends.audio_calls import AudioCalls
from mimo_edge.runtime.backends.base import Feed, Providers
from mimo_edge.runtime.backends.ort_codec import OrtCodecStates
from mimo_edge.runtime.backends.ort_graphs import CudaGraphs
from mimo_edge.runtime.backends.ort_libraries import load_cuda_libraries
from mimo_edge.runtime.backends.ort_memory import Memory
from mimo_edge.runtime.backends.ort_rows import OrtRowStates
from mimo_edge.runtime.backends.ort_threads import shares_pool, threads_for
from mimo_edge.runtime.bundle.built import check_built
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import (
    BundleWarning,
    EnvironmentProblem,
    InputError,
    ResourceError,
)
from numpy.typing import NDArray

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# float32 is float32: CUDA computes its products in TF32 unless told otherwise
OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
# How products with quantised weights are computed. Left to itself, ONNX Runtime rounds what they
# read to int8, which costs half a percent of the result: a piece must be made for that.
ACCURACY = "session.qdq_matmulnbits_accuracy_level"
EXACT, DYNAMIC = "1", "4"
# where the weights of a graph lie that comes as bytes
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_NO_MEMORY = re.compile("bad.?alloc|failed to allocate|out of memory", re.IGNORECASE)
_NO_THREADS = re.compile("pthread|thread constructor|resource temporarily", re.IGNORECASE)


class OrtBackend(AudioCalls):
    """Runs a bundle on ONNX Runtime. `device` is cpu or cuda; for `threads` see `ort_threads`.

    `device` says where states live, and which provider is asked for. `providers` names others in
    its place, first choice first, alone or with their options; `session_options` are session
    configuration entries by ONNX Runtime's own names. `cuda_graphs` names pieces whose steps are
    recorded as CUDA graphs (`ort_graphs`).
    """

    slots = 4  # rows are cheap beside the weights that a step reads; unused ones take no memory

    def __init__(
        self,
        bundle: Bundle,
        device: str = "cpu",
        threads: int | None = None,
        *,
        providers: Providers | None = None,
        session_options: Mapping[str, str] | None = None,
        cuda_graphs: Collection[str] = (),
    ) -> None:
        self.bundle, self.device = bundle, device
        self.graphs = CudaGraphs(cuda_graphs)
        self._providers = _named(providers or [PROVIDERS[device]])
        for provider in self._providers:
            if provider not in ort.get_available_providers():
                raise EnvironmentProblem(
                    f"this onnxruntime {ort.__version__} has no {provider}; it has "
                    f"{', '.join(ort.get_available_providers())}. Install onnxruntime-gpu, or the "
                    "package that has this provider, in place of onnxruntime, or use "
                    "--backend ort-cpu."
                )
        most = 4 * (os.cpu_count() or 1)
        if threads is not None and not 1 <= threads <= most:
            raise InputError(
                f"threads must be 1 to {most} on this machine, not {threads}; leave it out for all"
            )
        if bundle.piece("backbone").compute == "bf16":  # numpy has no such numbers either
            raise EnvironmentProblem(
                "the bundle is bf16, which the ONNX Runtime backends cannot run. Export it with "
                "--dtype fp32 or fp16, or build engines and use --backend trt-rtx or trt."
            )
        check_built(bundle, f"ort-{device}", ort.__version__)
        if device == "cuda":
            load_cuda_libraries()
        if next(iter(self._providers)) == PROVIDERS["cpu"]:
            _warn_of_half(bundle)
        self._entries = dict(session_options or {})
        self._threads = threads_for(bundle, threads)
        # what is said of threads by ONNX Runtime's names is for pools of the sessions' own
        own = any(key.startswith("session.intra_op.") for key in self._entries)
        self._pooled = not own and shares_pool(self._threads)
        self.memory = Memory(device)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._loading = threading.Lock()

    def session(self, name: str) -> ort.InferenceSession:
        """The session of a piece, made at its first use: to transcribe loads no vocoder.

        Threads that ask for one at the same time get the same.
        """
        with self._loading:
            if name not in self._sessions:
                self._sessions[name] = self._load(name)
            return self._sessions[name]

    def session_options(self, name: str) -> ort.SessionOptions:
        """How a session of a piece is opened, for one on a changed graph of it too."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self._pooled:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self._threads
        # a bound session does not need its arena to remember the shapes of one run
        options.enable_mem_pattern = False
        level = DYNAMIC if self.bundle.piece(name).dynamic else EXACT
        for key, value in ({ACCURACY: level} | self._entries).items():
            options.add_session_config_entry(key, value)
        return options

    def _load(self, name: str) -> ort.InferenceSession:
        return self._open(name, str(self.bundle.path(name)), self.session_options(name))

    def open_graph(self, name: str, graph: bytes) -> ort.InferenceSession:
        """A session of a changed graph of a piece; its weights stay in the bundle's files."""
        options = self.session_options(name)
        options.add_session_config_entry(WEIGHTS_FOLDER, str(self.bundle.folder))
        return self._open(name, graph, options)

    def _open(
        self, name: str, graph: str | bytes, options: ort.SessionOptions
    ) -> ort.InferenceSession:
        path = self.bundle.path(name)
        with _telling(f"load {path}"):
            # its own fallback would go on, slowly, on the CPU, and say so on stdout
            session = ort.InferenceSession(
                graph,
                options,
                providers=list(self._providers),
                provider_options=[
                    given | self.graphs.provider_options(name, provider)
                    for provider, given in self._providers.items()
                ],
                enable_fallback=0,
            )
        self.bundle.check_unchanged()  # nor while it was read
        lacking = [name for name in self._providers if name not in session.get_providers()]
        if lacking:
            raise EnvironmentProblem(
                f"ONNX Runtime {ort.__version__} did not load {path} with {lacking[0]}. Check "
                "the GPU, its driver and CUDA (mimo-edge doctor), or use --backend ort-cpu."
            )
        return session

    def load(self, pieces: Sequence[str]) -> None:
        for name in pieces:
            self.session(name)

    def run(self, name: str, feed: Feed) -> NDArray[Any]:
        return self.outputs(name, feed)[0]

    def outputs(self, name: str, feed: Feed) -> list[NDArray[Any]]:
        """All outputs of a piece."""
        session = self.session(name)
        with _telling(f"run {name}"):
            found: list[NDArray[Any]] = session.run(None, feed, self.graphs.plain_run(name))
        return found

    def run_bound(self, name: str, binding: Any, options: Any = None) -> None:
        """A piece on tensors that are bound."""
        session = self.session(name)
        with _telling(f"run {name}"):
            session.run_with_iobinding(binding, options or self.graphs.plain_run(name))

    def new_rows(self, rows: int) -> OrtRowStates:
        return OrtRowStates(self, rows)

    def new_codec_rows(self, rows: int) -> OrtCodecStates:
        return OrtCodecStates(self, rows)

    def describe(self) -> str:
        built = "" if self.bundle.manifest.built is None else ", built for it"
        return f"ONNX Runtime {ort.__version__} on {self.device}{built}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sessions.clear()
        self.memory.close()


def _named(providers: Providers) -> dict[str, dict[str, str]]:
    """Options by provider: those that are given, over ours."""
    named: dict[str, dict[str, str]] = {}
    for entry in providers:
        name, options = (entry, {}) if isinstance(entry, str) else entry
        named[name] = OPTIONS.get(name, {}) | {k: str(v) for k, v in options.items()}
    return named


def _warn_of_half(bundle: Bundle) -> None:
    """The CPU has no products in fp16: its weights become float32 as they are loaded."""
    half = [
        piece
        for piece, spec in bundle.manifest.pieces.items()
        if any(weights.scheme == "fp16" for weights in spec.weights.values())
    ]
    if half:
        held = bundle.data_bytes(*half)
        warnings.warn(
            f"{bundle.folder} is fp16, of which ONNX Runtime has no products on the CPU: its "
            f"{held / 1e9:.3g} GB of weights become up to {2 * held / 1e9:.3g} GB of "
            "float32 in memory. A quantised bundle is smaller there: mimo-edge "
            "quantize BUNDLE --recipe int8 -o SMALL.",
            BundleWarning,
            stacklevel=3,
        )


@contextmanager
def _telling(doing: str) -> Iterator[None]:
    """ONNX Runtime's own kinds of error as ours."""
    try:
        yield
    except Exception as error:  # the binding raises its own kinds
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise ResourceError(
                f"not enough memory to {doing} ({error}). Use a smaller precision, shorter audio "
                "or fewer rows, or a machine with more memory."
            ) from error
        if _NO_THREADS.search(str(error)):
            raise ResourceError(
                f"the system starts no more threads to {doing} ({error}). Use fewer (--threads 1), "
                "or raise the limit: ulimit -u, or the container's pids."
            ) from error
        raise EnvironmentProblem(
            f"ONNX Runtime {ort.__version__} cannot {doing}: {error}"
        ) from error

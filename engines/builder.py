"""One build of one piece, through either TensorRT module: both have the same Python API.

TensorRT reports an input that it ignores, an operator that it replaces, and the like, as mere log
messages. Here every message of weight that is not known to be harmless fails the build.
"""

import importlib
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from engines.lowering import lower
from engines.profiles import Range
from engines.target import Target
from runtime.errors import EngineError, EnvironmentProblem, ResourceError

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all

# Messages that are expected, and why each is harmless.
HARMLESS = (
    re.compile(r"Make sure (in|out)put \S+ has Int64 binding"),  # it has: the runtime binds int64
    # without a GPU the builder asks the driver once and goes on
    re.compile(r"CUDA driver version is insufficient|cudaError 35|Unable to determine GPU memory"),
    re.compile(r"CUDA initialization failure with error|no CUDA-capable device|cudaError 100"),
)
# Messages that may come at any severity and mean that the engine would compute something else.
FATAL = re.compile(r"unused input|is not used|not supported|unsupported|falling back|ignor", re.I)

_loggers: dict[str, Any] = {}


@dataclass
class BuildLog:
    """What TensorRT said."""

    lines: list[str] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)

    def add(self, severity: str, message: str) -> None:
        if severity != "VERBOSE":
            self.lines.append(f"{severity}: {message}")
        if any(pattern.search(message) for pattern in HARMLESS):
            return
        heavy = severity in ("INTERNAL_ERROR", "ERROR", "WARNING")
        if heavy or (severity != "VERBOSE" and FATAL.search(message)):
            self.fatal.append(message.strip())


@dataclass(frozen=True)
class Built:
    plan: bytes
    log: BuildLog
    seconds: float
    inputs: dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape (-1 = in a profile)
    outputs: dict[str, tuple[str, tuple[int, ...]]]


def load_module(target: Target) -> Any:
    """Import TensorRT. Raises EnvironmentProblem with how to install it."""
    try:
        return importlib.import_module(target.module)
    except ImportError as error:
        how = (
            'pip install "mimo-edge[trt]"'
            if target.product == "trt-rtx"
            else "it comes with JetPack, or from NVIDIA's own package index"
        )
        raise EnvironmentProblem(f"{target.module} is not installed: {how}.") from error


def build(
    trt: Any,
    target: Target,
    graph: Path,
    profiles: list[dict[str, Range]],
    capacity: int,
    progress: Progress = lambda *_: None,
    timing_cache: Path | None = None,
) -> Built:
    """Lower, parse and build one ONNX file. Raises EngineError that quotes what TensorRT said.

    `timing_cache` is read if it is there, and written: so that a kernel is measured only once.
    """
    log = BuildLog()
    logger = _logger(trt, log)
    start = time.monotonic()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    model = lower(onnx.load(graph, load_external_data=False), capacity)
    parsed = parser.parse(model.SerializeToString(), str(graph))
    if not parsed:
        raise _failure(graph, log, [parser.get_error(i).desc() for i in range(parser.num_errors)])
    _let_attention_decompose(trt, network)
    _stop_at(graph, log)
    _check_ports(graph, model, network)

    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, progress)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, typical, largest) in shapes.items():
            profile.set_shape(name, smallest, typical, largest)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{graph.name}: TensorRT refused the profile {shapes}")
    if target.capabilities:
        config.num_compute_capabilities = len(target.capabilities)
        for index, capability in enumerate(target.capabilities):
            name = f"SM{capability.replace('.', '')}"
            if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
                raise EngineError(f"{graph.name}: TensorRT refused compute capability {capability}")
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    plan = builder.build_serialized_network(network, config)
    if timing_cache is not None and plan is not None:
        temporary = timing_cache.with_name(timing_cache.name + ".tmp")
        temporary.write_bytes(config.get_timing_cache().serialize())
        os.replace(temporary, timing_cache)
    _stop_at(graph, log)
    if plan is None:
        raise _failure(graph, log, ["no plan came out"])
    return Built(
        bytes(plan),
        log,
        time.monotonic() - start,
        _ports(network.get_input(i) for i in range(network.num_inputs)),
        _ports(network.get_output(i) for i in range(network.num_outputs)),
    )


def trtexec_command(
    target: Target, graph: Path, profiles: list[dict[str, Range]], capacity: int
) -> str:
    """The equivalent command line, for those who want to build by hand."""
    tool = "tensorrt_rtx" if target.product == "trt-rtx" else "trtexec"

    def shapes(profile: dict[str, Range], end: int) -> str:
        return ",".join(f"{n}:{'x'.join(map(str, r[end]))}" for n, r in profile.items())

    words = [tool, f"--onnx={graph}", "--stronglyTyped", f"--saveEngine={graph.stem}.plan"]
    for index, profile in enumerate(profiles):
        words.append(f"--profile={index}")
        for end, name in enumerate(("min", "opt", "max")):
            words.append(f"--{name}Shapes={shapes(profile, end)}")
    if target.capabilities:
        words.append(f"--computeCapabilities={','.join(target.capabilities)}")
    note = (
        f"  # first set the axis `capacity` of the cache to {capacity}"
        if graph.stem == "backbone"
        else ""
    )
    return " ".join(words) + note


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Where there is no fused attention kernel for a shape, let it be made of single layers: the
    same arithmetic, and without this the build fails (float32 always needs it)."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionBoundaryLayer  # the binding hands out the base class
            layer.attention.decomposable = True


def _check_ports(graph: Path, model: onnx.ModelProto, network: Any) -> None:
    """Every input and output of the graph must be one of the network, under its own name."""
    for side, values, count, get in (
        ("input", model.graph.input, network.num_inputs, network.get_input),
        ("output", model.graph.output, network.num_outputs, network.get_output),
    ):
        wanted = {value.name for value in values}
        found = {get(i).name for i in range(count)}
        if wanted != found:
            raise EngineError(
                f"{graph.name}: TensorRT's network has other {side}s: "
                f"missing {sorted(wanted - found)}, unexpected {sorted(found - wanted)}"
            )


def _stop_at(graph: Path, log: BuildLog) -> None:
    if log.fatal:
        raise _failure(graph, log, [])


def _failure(graph: Path, log: BuildLog, errors: list[str]) -> Exception:
    said = [*errors, *log.fatal]
    kind = ResourceError if any("out of memory" in text.lower() for text in said) else EngineError
    listed = "\n  ".join(text[:300] for text in said[:10])
    return kind(f"TensorRT does not build {graph.name} as it is:\n  {listed}")


def _ports(tensors: Iterable[Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {t.name: (t.dtype.name.lower(), tuple(t.shape)) for t in tensors}


def _logger(trt: Any, log: BuildLog) -> Any:
    """The module's logger, writing to `log` from now on.

    TensorRT keeps the first logger that it is given, so there is one for the whole process.
    """
    if trt.__name__ not in _loggers:

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.sink = log

            def log(self, severity: Any, message: str) -> None:
                self.sink.add(severity.name, message)

        _loggers[trt.__name__] = Logger()
    _loggers[trt.__name__].sink = log
    return _loggers[trt.__name__]


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self.steps[name] = num_steps
            progress(name, 0, num_steps)

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, step + 1, self.steps.get(name, 0))
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()

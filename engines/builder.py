"""One build of one piece, through either TensorRT module: both have the same Python API."""

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from mimo_edge.engines.build_log import MEMORY, BuildLog, logger_of
from mimo_edge.engines.lowering import lower
from mimo_edge.engines.ports import (
    Ports,
    check_ports,
    graph_ports,
    network_ports,
)
from mimo_edge.engines.target import Target
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.errors import EngineError, EnvironmentProblem, ResourceError
from mimo_edge.runtime.bundle.requirements import install

OnProgress = Callable[[str, int, int], None]  # phase, steps done, steps in all
INTERRUPTED = "interrupted"  # phase: Ctrl-C was seen, TensorRT has not stopped yet

# The piece whose build did not end with a plan: this process must not build again. TensorRT for RTX
# 1.7 may keep the target of such a build and give it to the next one: a plan asked for 8.9 after a
# failure for 7.5 was the one for 7.5, without any message (docs/tensorrt.md).
_tainted: list[str] = []


class StillBuilding(KeyboardInterrupt):
    """The second Ctrl-C: TensorRT still works in its thread, and the process cannot end as usual
    (it would abort). What is on disk is whole."""


@dataclass(frozen=True)
class Built:
    """A plan, and what is to be checked or kept of its build."""

    plan: Any  # a buffer: TensorRT's own memory, which is not copied
    log: BuildLog
    seconds: float
    inputs: Ports
    outputs: Ports
    timing_cache: bytes | None  # what classic TensorRT learned; None where there is no such thing


def load_module(target: Target) -> Any:
    """Import TensorRT. Raises EnvironmentProblem with how to install it."""
    try:
        return importlib.import_module(target.module)
    except ImportError as error:
        how = (
            install("trt")
            if target.product == "trt-rtx"
            else "it comes with JetPack, or from NVIDIA's own package index"
        )
        raise EnvironmentProblem(f"{target.module} is not installed: {how}.") from error


def builder_flags(trt: Any, target: Target) -> tuple[str, ...]:
    """What every build of this product sets, by name; it is part of an engine's identity."""
    flags = ["STRONGLY_TYPED", "NO_TF32"]
    if target.product == "trt-rtx" and hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # without it an engine may allocate as it runs, which cannot become part of a CUDA graph
        flags.append("REQUIRE_USER_ALLOCATION")
    return tuple(flags)


def build(
    trt: Any,
    target: Target,
    graph: Path,
    profiles: Sequence[Profile],
    capacity: int,
    on_progress: OnProgress = lambda *_: None,
    timing_cache: bytes = b"",
    strict: bool = False,
    model: onnx.ModelProto | None = None,
) -> Built:
    """Lower, parse and build one ONNX file. Raises EngineError that quotes what TensorRT said.

    `model`, which is lowered in place, is built instead of what the file holds; its weights lie
    beside the file.

    `strict` also fails a build on warnings that nobody has looked into; see `build_log`.

    TensorRT works in a thread of its own, so that Ctrl-C arrives here at once and never inside a
    callback, where TensorRT would swallow it. It can be stopped only between its steps, of which
    one takes most of the time (minutes for a large piece): the first Ctrl-C is reported as the
    phase INTERRUPTED and waits for that, the second does not wait.
    """
    monitor, log = _monitor(trt, on_progress), BuildLog(strict)
    outcome: list[Built] = []
    failure: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            read = onnx.load(graph, load_external_data=False) if model is None else model
            made = _build(trt, target, graph, read, profiles, capacity, monitor, timing_cache, log)
            outcome.append(made)
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=work, name="tensorrt", daemon=True).start()
        _wait(ended, monitor, on_progress)
    except KeyboardInterrupt as error:
        raise StillBuilding from error
    if monitor.interruption is not None:
        raise monitor.interruption
    if failure:
        raise failure[0]
    return outcome[0]


def _wait(ended: threading.Event, monitor: Any, on_progress: OnProgress) -> None:
    """Until TensorRT is done. The first Ctrl-C asks it to stop, the second one is raised."""
    try:
        while not ended.wait(0.2):  # not join: interrupted, it takes a running thread for ended
            pass
    except KeyboardInterrupt as error:
        monitor.interruption = error
        on_progress(INTERRUPTED, 0, 0)
        while not ended.wait(0.2):
            pass


def _build(
    trt: Any,
    target: Target,
    graph: Path,
    model: onnx.ModelProto,
    profiles: Sequence[Profile],
    capacity: int,
    monitor: Any,
    timing_cache: bytes,
    log: BuildLog,
) -> Built:
    if _tainted:
        raise EngineError(
            f"TensorRT did not finish {_tainted[0]} in this process and would build the next piece "
            "for the wrong GPU. Build in a new process."
        )
    start = time.monotonic()
    logger = logger_of(trt, log)
    builder = _builder(trt, logger, log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    lower(model, capacity)
    if not parser.parse(model.SerializeToString(), str(graph)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _failure(graph, log, [*errors, *log.memory])
    _let_attention_decompose(trt, network)
    _stop_at(graph, log)
    inputs = network_ports(network.get_input(i) for i in range(network.num_inputs))
    outputs = network_ports(network.get_output(i) for i in range(network.num_outputs))
    check_ports(graph.name, "input", graph_ports(model.graph.input), inputs)
    check_ports(graph.name, "output", graph_ports(model.graph.output), outputs)

    config = builder.create_builder_config()
    config.progress_monitor = monitor
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if "REQUIRE_USER_ALLOCATION" in builder_flags(trt, target):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    _add_profiles(graph, builder, config, profiles)
    _set_capabilities(trt, target, graph, config)
    measures = target.product == "trt"  # TensorRT for RTX chooses kernels where the engine runs
    if measures:
        cache = config.create_timing_cache(timing_cache)  # must live until the plan is there
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        _tainted.append(graph.name)
    _stop_at(graph, log)
    if plan is None:
        raise _failure(graph, log, ["no plan came out", *log.memory])
    learned = bytes(config.get_timing_cache().serialize()) if measures else None
    return Built(memoryview(plan), log, time.monotonic() - start, inputs, outputs, learned)


def _builder(trt: Any, logger: Any, log: BuildLog) -> Any:
    """Raises EnvironmentProblem where TensorRT needs a GPU and there is none."""
    try:
        return trt.Builder(logger)
    except TypeError as error:  # the binding's way to say that there is none
        raise EnvironmentProblem(
            f"TensorRT cannot build here: {'; '.join(log.lines[-2:]) or error}. Classic TensorRT "
            "builds on the machine that has the GPU; `mimo-edge doctor` looks at driver and GPU."
        ) from error


def _network_flags(trt: Any) -> int:
    """Strongly typed: since TensorRT 11 there is nothing else, and the flag may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _add_profiles(graph: Path, builder: Any, config: Any, profiles: Sequence[Profile]) -> None:
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, wanted in shapes.items():
            profile.set_shape(name, *wanted)
            if tuple(tuple(shape) for shape in profile.get_shape(name)) != wanted:
                raise EngineError(f"{graph.name}: TensorRT did not take {wanted} for {name}")
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{graph.name}: TensorRT refused the profile {shapes}")


def _set_capabilities(trt: Any, target: Target, graph: Path, config: Any) -> None:
    """Ahead of time for GPUs that are not here; classic TensorRT builds for the one that is."""
    if target.product != "trt-rtx":
        return
    config.num_compute_capabilities = len(target.capabilities)
    for index, capability in enumerate(target.capabilities):
        name = f"SM{capability.replace('.', '')}"
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise EngineError(f"{graph.name}: TensorRT refused compute capability {capability}")


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Where there is no fused attention kernel for a shape, let it be made of single layers: the
    same arithmetic, and without this the build fails (float32 always needs it)."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    if kind is None:
        raise EngineError(
            f"TensorRT {trt.__version__} knows no attention layer. Install 10.14 or newer."
        )
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionBoundaryLayer  # the binding hands out the base class
            layer.attention.decomposable = True


def _stop_at(graph: Path, log: BuildLog) -> None:
    if log.fatal:
        raise _failure(graph, log, [])


def _failure(graph: Path, log: BuildLog, errors: list[str]) -> Exception:
    said = [*errors, *log.fatal]
    kind = ResourceError if any(MEMORY.search(text) for text in said) else EngineError
    listed = "\n  ".join(text[:300] for text in said[:10])
    return kind(f"TensorRT does not build {graph.name} as it is:\n  {listed}")


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    """Progress, and the way out of a build: an error in `on_progress` must not pass through
    TensorRT, which calls this from C++. It is kept, TensorRT is asked to stop, and `build` raises
    it.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interruption: BaseException | None = None

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self.steps[name] = num_steps
            self.tell(name, 0)

        def step_complete(self, name: str, step: int) -> bool:
            self.tell(name, step + 1)
            return self.interruption is None

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

        def tell(self, name: str, done: int) -> None:
            if self.interruption is None:
                try:
                    on_progress(name, done, self.steps.get(name, 0))
                except BaseException as error:
                    self.interruption = error

    return Monitor()

"""The backends by name. What a backend needs is imported only when it is asked for."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from mimo_edge.runtime.backends.base import Backend, Providers
from mimo_edge.runtime.bundle.built import ORT_CPU, find_built
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine_folders import Trust
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.requirements import onnxruntime_choice

BACKENDS = ("ort-cpu", "ort-cuda", "trt-rtx", "trt")


def open_backend(
    name: str,
    bundle: Bundle,
    threads: int | None = None,
    *,
    providers: Providers | None = None,
    session_options: Mapping[str, str] | None = None,
    engines: Path | None = None,
    trust_engines: bool = False,
) -> Backend:
    """Open a bundle on a backend. `threads` is for the CPU; None lets it choose.

    `providers` and `session_options` are ONNX Runtime's own, for its backends only: see
    `ort.OrtBackend`. `engines` is a folder of builds, in place of the cache folder: of TensorRT
    engines, or for ort-cpu of what `build --target ort-cpu` made; where ort-cpu finds no build in
    the cache folder it runs the bundle as it is. `trust_engines` lets engines run that lie in the
    bundle: they are programs. Raises InputError for an unknown name or an option of another
    backend, EnvironmentProblem for what is not installed, EngineError where no engine fits, or
    for a bundle that was built for another machine, BundleError for a pack of another backend.
    """
    if name in BACKENDS:
        bundle.check_backend(name)
    if name in ("ort-cpu", "ort-cuda"):
        version = onnxruntime_version()
        from mimo_edge.runtime.backends.ort import OrtBackend

        if trust_engines or (engines is not None and name != ORT_CPU):
            raise InputError(f"backend {name} runs no engines. Leave out what is said of them.")
        if name == ORT_CPU and bundle.manifest.built is None:
            bundle = find_built(bundle, version, engines) or bundle
        device = name.removeprefix("ort-")
        return OrtBackend(
            bundle, device, threads, providers=providers, session_options=session_options
        )
    if name in ("trt-rtx", "trt"):
        from mimo_edge.runtime.backends.trt import TrtBackend

        if providers or session_options:
            raise InputError(
                f"providers and session options are ONNX Runtime's; backend {name} has none. "
                "Leave them out, or use ort-cpu or ort-cuda."
            )
        return TrtBackend(bundle, name, trust=Trust(engines, trust_engines))
    raise InputError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")


def onnxruntime_version() -> str:
    """Any of its variants will do; which one is the user's choice, so none comes by itself.

    Raises EnvironmentProblem where none is installed.
    """
    try:
        version: str = importlib.import_module("onnxruntime").__version__
        return version
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"no ONNX Runtime is installed. Choose a variant: {onnxruntime_choice()}."
        ) from error

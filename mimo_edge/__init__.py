"""MiMo-Audio without PyTorch: export to ONNX and TensorRT, and run on a CPU or an edge GPU.

    import mimo_edge

    with mimo_edge.load("bundle") as model:
        print(model.transcribe("question.wav"))

What is named here is the public API; everything else may change between versions.
"""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path

from mimo_edge.runtime.backends.base import Providers
from mimo_edge.runtime.bundle.errors import (
    AudioError,
    BundleError,
    BusyError,
    ContextError,
    EngineError,
    EnvironmentProblem,
    InputError,
    MimoError,
    ResourceError,
    TextError,
)
from mimo_edge.runtime.chat.conversation import Message
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

# Read once, when ONNX Runtime is first imported, which nothing above does. Without it, ONNX Runtime
# keeps a device id and a database below HOME, and reports to its makers. 0 lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = importlib.metadata.version("mimo-edge")
__all__ = [
    "AudioError",
    "BundleError",
    "BusyError",
    "ContextError",
    "EngineError",
    "EnvironmentProblem",
    "InputError",
    "Message",
    "MimoAudio",
    "MimoError",
    "Options",
    "ResourceError",
    "Sampling",
    "TextError",
    "__version__",
    "load",
]


def load(
    path: str | Path,
    *,
    backend: str = "ort-cpu",
    providers: Providers | None = None,
    session_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    slots: int | None = None,
    reuse: bool = True,
    verify: bool = True,
    engines: str | Path | None = None,
    trust_engines: bool = False,
) -> MimoAudio:
    """Open a bundle and give the model, ready for every task.

    `backend` is one of `mimo_edge.runtime.backends.opening.BACKENDS`. `providers` go to ONNX
    Runtime as they are, in place of the backend's own; `session_options` are its session
    configuration entries by name. `threads` counts CPU threads; None lets the backend choose.
    `slots` answers share each step (None: 4, or what engines were built for); a prompt that begins
    as an earlier one did is not computed anew where `reuse` is true. `verify` hashes the bundle's
    files. TensorRT engines are programs: they are taken from the cache folder of `mimo-edge build`
    or from the folder `engines`, and from the bundle itself only with `trust_engines`. Raises
    BundleError, EngineError, EnvironmentProblem, InputError.
    """
    return MimoAudio.open(
        path,
        backend,
        providers=providers,
        session_options=session_options,
        threads=threads,
        slots=slots,
        reuse=reuse,
        verify=verify,
        engines=engines,
        trust_engines=trust_engines,
    )

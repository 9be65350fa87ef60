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
from mimo_edge.runtime.tasks import MimoAudio, Options

# Read once, when ONNX Runtime is first imported, which nothing above does. Without it, ONNX Runtime
# keeps a device id and a database below HOME, and reports to its makers. 0 lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = importlib.metadata.version("mimo-edge")
__all__ = [
    "AudioError",
    "BundleError",
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
    verify: bool = True,
) -> MimoAudio:
    """Open a bundle and give the model, ready for every task.

    `backend` is one of `mimo_edge.runtime.backends.opening.BACKENDS`. `providers` go to ONNX
    Runtime as they are, in place of the backend's own; `session_options` are its session
    configuration entries by name. `threads` counts CPU threads; None lets the backend choose.
    `verify` hashes the bundle's files. Raises BundleError, EnvironmentProblem, InputError.
    """
    return MimoAudio.open(
        path,
        backend,
        providers=providers,
        session_options=session_options,
        threads=threads,
        verify=verify,
    )

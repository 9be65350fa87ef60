"""The backends by name. What a backend needs is imported only when it is asked for."""

from runtime.backend import Backend
from runtime.bundle import Bundle
from runtime.errors import InputError

BACKENDS = ("ort-cpu", "ort-cuda", "trt-rtx", "trt")


def open_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """Open a bundle on a backend. `threads` is for the CPU; None lets it choose.

    Raises InputError for an unknown name, EnvironmentProblem for what is not installed.
    """
    if name in ("ort-cpu", "ort-cuda"):
        from runtime.ort_backend import OrtBackend

        return OrtBackend(bundle, name.removeprefix("ort-"), threads)
    if name in ("trt-rtx", "trt"):
        from runtime.trt_backend import TrtBackend

        return TrtBackend(bundle, name)
    raise InputError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")

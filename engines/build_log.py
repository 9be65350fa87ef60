"""What TensorRT says while it builds, and which of it fails the build.

TensorRT reports an input that it ignores, an operator that it replaces, and the like, as mere log
messages. Here every message of weight that is not known to be harmless is fatal.
"""

import re
from dataclasses import dataclass, field
from typing import Any

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


def logger_of(trt: Any, log: BuildLog) -> Any:
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

"""What TensorRT says while it builds, and which of it fails the build.

TensorRT reports an input that it ignores, an operator that it replaces, a number that it clamps,
and the like, as mere log messages. Those fail the build at any severity, and errors do. Any other
warning is recorded, and fails only a strict build: that is for continuous integration, where
somebody looks into it and puts it on one of the two lists here.
"""

import re
from dataclasses import dataclass, field
from typing import Any

# Messages that are expected, and why each is harmless. They are looked for first: one of them,
# "UNSUPPORTED_STATE: Skipping tactic", has a fatal word in it.
HARMLESS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        # it has: the runtime binds int64
        r"Make sure (in|out)put \S+ has Int64 binding",
        # without a GPU the builder asks the driver once and goes on
        r"CUDA driver version is insufficient|cudaError 35|Unable to determine GPU memory",
        r"CUDA initialization failure with error|no CUDA-capable device|cudaError 100",
        # classic TensorRT loads all kernels at once then: it takes more memory, no other numbers
        r"CUDA lazy loading is not enabled",
        # one of the kernels that are tried wants more memory than there is, and another is taken
        r"Skipping tactic \S+ due to (insuff?icient memory|exception)",
        r"Tactic Device request: .*insufficient to use tactic",
        r"Some tactics do not have sufficient workspace memory",
        # weights nearer to zero than the precision resolves: that is its rounding. Those that are
        # too large are told apart: "overflow" in the message
        r"^(?!.*(overflow|infinit)).*(?i:subnormal)",
        r"Weights \[name=.*\] had the following issues when converted to \S+:\s*$",
        r"If this is not the desired behavior, please modify the weights or retrain",
    )
)
# Messages that may come at any severity and mean that the engine would compute something else: an
# input or attribute that is not heeded (`nonpad_kv_seqlen` and `is_causal` of Attention are read in
# another way than ONNX has it), an operator that is replaced, a precision that is left, a number
# that does not fit.
FATAL = re.compile(
    r"unused (input|output|attribute|initializer)|is not used|no effect|ignor|dropp"
    r"|not supported|unsupported|does not (natively )?support|unknown attribute"
    r"|nonpad|is_causal"
    r"|fall(s|ing|en)? ?back|cast(ing|ed)? down|down-?cast|reduced precision|lower precision"
    r"|clamp|overflow|saturat",
    re.IGNORECASE,
)
# An allocation that fails while kernels are tried: that kernel is skipped. If it was more than
# that, no plan comes out, and then this is why.
MEMORY = re.compile(
    r"out ?of ?memory|could not be allocated|insufficient memory|bad_alloc", re.IGNORECASE
)


@dataclass
class BuildLog:
    """What TensorRT said. `strict` makes every warning that is not known to be harmless fatal."""

    strict: bool = False
    lines: list[str] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # neither known to be harmless nor fatal
    memory: list[str] = field(default_factory=list)  # fatal if no plan comes out

    def add(self, severity: str, message: str) -> None:
        if severity != "VERBOSE":
            self.lines.append(f"{severity}: {message}")
        if severity == "VERBOSE" or any(pattern.search(message) for pattern in HARMLESS):
            return
        message = message.strip()
        if MEMORY.search(message):
            self.memory.append(message)
        elif severity in ("INTERNAL_ERROR", "ERROR") or FATAL.search(message):
            self.fatal.append(message)
        elif severity == "WARNING":
            self.warnings.append(message)
            if self.strict:
                self.fatal.append(message)


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


_loggers: dict[str, Any] = {}

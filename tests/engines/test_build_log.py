"""What TensorRT says: recorded, fatal, or known to be harmless."""

import pytest
from mimo_edge.engines.build_log import BuildLog
from mimo_edge.engines.builder import _failure
from mimo_edge.runtime.bundle.errors import EngineError, ResourceError

# as classic TensorRT 8 to 11 and TensorRT for RTX word them
HARMLESS = (
    ("WARNING", "Make sure input lengths has Int64 binding."),
    ("WARNING", "CUDA lazy loading is not enabled. Enabling it can significantly reduce memory."),
    ("WARNING", "UNSUPPORTED_STATE: Skipping tactic 33 due to insufficient memory on requested "
     "size of 629145600 detected for tactic 0xa5a46bfbd719d757."),
    ("WARNING", "Skipping tactic 3 due to insuficient memory on requested size of 449 detected"),
    ("WARNING", "Tactic Device request: 600MB Available: 302MB. Device memory is insufficient to "
     "use tactic."),
    ("WARNING", "Weights [name=layers.0.mlp.up.weight] had the following issues when converted to "
     "FP16:"),
    ("WARNING", " - Subnormal FP16 values detected. "),
    ("WARNING", "If this is not the desired behavior, please modify the weights or retrain with "
     "regularization to reduce the magnitude of the weights."),
    ("ERROR", "CUDA initialization failure with error: 35."),
    ("VERBOSE", "this op is not supported, trying another way"),
    ("INFO", "Building for 3 targets"),
    ("INFO", "Disabling unused tactic source: EDGE_MASK_CONVOLUTIONS"),
)  # fmt: skip
CHANGES_NUMBERS = (
    ("INFO", "Unused Input: lengths"),
    ("INFO", "falling back to FP32"),
    ("WARNING", "No fused kernel, fallback to reduced precision accumulation."),
    ("INFO", "ignoring attribute"),
    ("WARNING", "Attribute qk_matmul_output_mode has no effect"),
    ("WARNING", "nonpad_kv_seqlen of node Attention_3 will be set aside"),
    ("INFO", "is_causal aligned to the end of the keys"),
    ("WARNING", "TensorRT does not natively support INT64. Attempting to cast down to INT32."),
    ("WARNING", "One or more weights outside the range of INT32 was clamped"),
    ("WARNING", " - Finite FP32 values which would overflow in FP16 detected. Converting to "
     "closest finite FP16 value, beside subnormal FP16 ones."),
    ("WARNING", "scales were dropped"),
    ("ERROR", "anything"),
    ("INTERNAL_ERROR", "anything"),
)  # fmt: skip
UNKNOWN = ("WARNING", "TensorRT was linked against cuDNN 8.9.0 but loaded cuDNN 8.7.0")


def heard(severity: str, message: str, *, strict: bool = False) -> BuildLog:
    log = BuildLog(strict)
    log.add(severity, message)
    return log


@pytest.mark.parametrize(("severity", "message"), HARMLESS)
def test_harmless(severity: str, message: str) -> None:
    log = heard(severity, message, strict=True)
    assert not (log.fatal or log.warnings or log.memory)
    assert bool(log.lines) == (severity != "VERBOSE"), "it is recorded all the same"


@pytest.mark.parametrize(("severity", "message"), CHANGES_NUMBERS)
def test_what_changes_numbers_is_fatal(severity: str, message: str) -> None:
    assert heard(severity, message).fatal == [message.strip()]


def test_an_unknown_warning_is_recorded_and_fatal_when_strict() -> None:
    log = heard(*UNKNOWN)
    assert log.warnings == [UNKNOWN[1]] and not log.fatal
    assert log.lines == [f"{UNKNOWN[0]}: {UNKNOWN[1]}"]
    assert heard(*UNKNOWN, strict=True).fatal == [UNKNOWN[1]]


def test_memory_is_fatal_where_no_plan_comes_out(tmp_path) -> None:
    log = heard("ERROR", "[defaultAllocator.cpp::allocate] Error Code 1: Cuda (out of memory)")
    log.add("WARNING", "Requested amount of GPU memory (629 bytes) could not be allocated.")
    assert not log.fatal and len(log.memory) == 2
    error = _failure(tmp_path, log, ["no plan came out", *log.memory])
    assert isinstance(error, ResourceError) and "out of memory" in str(error)
    assert isinstance(_failure(tmp_path, BuildLog(), ["no plan came out"]), EngineError)

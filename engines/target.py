"""Targets: what engines are built for. `trt-rtx:8.9` is TensorRT for RTX, `trt` the classic one."""

from dataclasses import dataclass, replace

from mimo_edge.runtime.bundle.engine import MODULES
from mimo_edge.runtime.bundle.errors import InputError

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
# TensorRT for RTX knows 7.5 too, but has no float32 matrix product there, which the mel front end,
# the quantiser, the samplers and the inverse STFT need, and no bf16
TURING = "7.5"


@dataclass(frozen=True)
class Target:
    """`capabilities` of classic TensorRT is that of the GPU that is there; see `on_gpu`."""

    product: str  # "trt-rtx" or "trt"
    capabilities: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The Python module of the product."""
        return MODULES[self.product]

    def on_gpu(self, capability: str) -> "Target":
        """The same target where the GPU with this compute capability is."""
        return self if self.capabilities else replace(self, capabilities=(capability,))


def parse(text: str) -> Target:
    """`trt-rtx:8.6,8.9` or `trt`. Raises InputError with what may stand there."""
    product, _, rest = text.partition(":")
    if product == "trt":
        if rest:
            raise InputError(
                f"target {text!r}: classic TensorRT builds for the GPU that is there; write `trt`"
            )
        return Target("trt")
    if product != "trt-rtx":
        raise InputError(f"there is no target {text!r}; write `trt`, or `trt-rtx:8.6,8.9,12.0`")
    capabilities = tuple(dict.fromkeys(part for part in rest.split(",") if part))
    if not capabilities:
        raise InputError(
            f"target {text!r} names no compute capability; write one or more of "
            f"{', '.join(RTX_CAPABILITIES)}, as in `trt-rtx:8.9` (RTX 40), `trt-rtx:12.0` (RTX 50)"
        )
    for capability in capabilities:
        if capability == TURING:
            raise InputError(
                "TensorRT for RTX cannot build this model for compute capability 7.5: it has no "
                "float32 matrix product there. Run the bundle on that GPU with "
                "--backend ort-cuda, which needs no build."
            )
        if capability not in RTX_CAPABILITIES:
            raise InputError(
                f"TensorRT for RTX does not build for compute capability {capability}, only for "
                f"{', '.join(RTX_CAPABILITIES)}. Jetson Orin (8.7), Thor (11.0) and data centre "
                "GPUs (9.0, 10.0) take classic TensorRT: run `mimo-edge build --target trt` there."
            )
    return Target(product, capabilities)

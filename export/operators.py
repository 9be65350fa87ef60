"""The computations that exported graphs carry as one standard ONNX operator each.

`traced()` puts them in the place of the reference's own functions while a piece is traced, so that
the wrappers need no second copy of any layer.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mimo_edge.mimo_ref import attention, rotary
from torch import Tensor

OPSET = 24


def symbolic(
    name: str, inputs: tuple[Tensor, ...], like: Tensor, **attrs: int | float | str
) -> Tensor:
    """One node of the default domain whose output has the shape and dtype of `like`."""
    return torch.onnx.ops.symbolic(
        name,
        inputs,
        attrs={**attrs},
        dtype=like.dtype,
        shape=like.shape,
        version=OPSET,
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RotaryEmbedding: x [B, H, T, D], tables [B or 1, T, D / 2]; the operator wants B rows."""
    cos, sin = (t if t.shape[0] != 1 else t.expand(x.shape[0], -1, -1) for t in (cos, sin))
    return symbolic("RotaryEmbedding", (x, cos, sin), x)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as 0 and -inf: TensorRT crashes on bool masks that layers share."""
    return torch.where(mask, 0.0, -math.inf).to(dtype)


def tensor_scatter(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """Write new [B, H, T, D] into cache [B, H, S, D] at start [B]; in place if bound so."""
    return symbolic("TensorScatter", (cache, new, start), cache, axis=2, mode="linear")


@contextmanager
def traced() -> Iterator[None]:
    """Let the reference use these operators inside the block."""
    masks: dict[int, tuple[Tensor, Tensor]] = {}  # the bool mask is kept alive: ids are reused

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs: tuple[Tensor, ...] = (q, k, v)
        if mask is not None:  # all layers share one additive mask
            if id(mask) not in masks:
                masks[id(mask)] = (mask, additive(mask, q.dtype))
            inputs = (*inputs, masks[id(mask)][1])
        return symbolic("Attention", inputs, q, scale=q.shape[-1] ** -0.5)

    originals = rotary.rotate, attention.attention, attention.write
    rotary.rotate, attention.attention, attention.write = rotate, attend, tensor_scatter
    try:
        yield
    finally:
        rotary.rotate, attention.attention, attention.write = originals

"""Upstream's attention kernels in the place of PyTorch's: flash-attn, on CUDA.

Off unless asked for: inside `flash_attention()` the reference computes with them, in float16 or
bfloat16, so that it can be held against upstream as upstream runs. The kernels take no mask but a
number of keys and a window around each query; the model's masks are of that kind, and are turned
back into it.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mimo_edge.mimo_ref import attention
from mimo_edge.mimo_ref.errors import MissingPackage
from torch import Tensor

ALL = -1  # of a window: no bound on this side


@contextmanager
def flash_attention() -> Iterator[None]:
    """Let the reference use flash-attn inside the block.

    Raises MissingPackage if it is not installed; inside, ValueError for float32 and for a mask that
    is no window.
    """
    kernel, original = _kernel(), attention.attention

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if q.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"flash-attn computes in float16 or bfloat16, not in {q.dtype}")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, T, H, D], as it wants them
        if mask is None:
            return kernel(q, k, v, window_size=(ALL, ALL)).transpose(1, 2)
        out = torch.zeros_like(q)
        for row in range(len(q)):
            queries, keys, sides = window(mask.expand(len(q), -1, -1, -1)[row, 0])
            parts = q[row : row + 1, :queries], k[row : row + 1, :keys], v[row : row + 1, :keys]
            out[row, :queries] = kernel(*parts, window_size=sides)[0]
        return out.transpose(1, 2)

    attention.attention = attend
    try:
        yield
    finally:
        attention.attention = original


def window(mask: Tensor) -> tuple[int, int, tuple[int, int]]:
    """A mask [T, S] as (queries, keys, (left, right)), as flash-attn means it.

    The last query is aligned with the last key; query t sees from `left` keys before its own to
    `right` after it. Queries that pad a sequence are left out: what they give means nothing, and a
    key that only its own query sees is theirs.
    """
    time, count = mask.shape
    if (found := _fit(mask)) is not None:
        return time, *found
    if time == count:
        own = torch.eye(time, dtype=torch.bool, device=mask.device)
        length = int((mask & ~own).any(0).nonzero().amax()) + 1 if (mask & ~own).any() else 1
        if (found := _fit(mask[:length, :length])) is not None:
            return length, *found
    raise ValueError("flash-attn takes no mask that is not a window around each query")


def _fit(mask: Tensor) -> tuple[int, tuple[int, int]] | None:
    """(keys, (left, right)) if the mask is such a window for all its queries."""
    time, count = mask.shape
    places = torch.arange(count, device=mask.device)
    last, first = (torch.where(mask, places, none) for none in (-1, count))
    last, first = last.amax(1), first.amin(1)
    keys = int(last.max()) + 1
    own = torch.arange(time, device=mask.device) + keys - time
    before, after = (own - first)[first > 0], (last - own)[last < keys - 1]
    left, right = (int(side[0]) if len(side) else ALL for side in (before, after))
    if (len(before) and left < 0) or (len(after) and right < 0):
        return None
    seen = (places < keys).expand(time, -1)
    if left != ALL:
        seen = seen & (places >= (own - left)[:, None])
    if right != ALL:
        seen = seen & (places <= (own + right)[:, None])
    return (keys, (left, right)) if keys and torch.equal(seen, mask) else None


def _kernel() -> Callable[..., Any]:
    try:
        return importlib.import_module("flash_attn").flash_attn_func
    except ImportError as error:
        raise MissingPackage(
            "flash-attn is not installed. Install it on a machine with CUDA, a compiler and torch: "
            'pip install --no-build-isolation "flash-attn>=2.7".'
        ) from error

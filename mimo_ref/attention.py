"""Scaled dot-product attention, and its cache: the one place that computes them.

Like `rotary.rotate` it is called through its module, so that the exporter can put a single operator
in its place while it traces.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q [B, H, T, D], k and v [B, H_kv, S, D] -> [B, H, T, D].

    mask bool, broadcast to [B, H, T, S], is true at visible keys; None shows all. With fewer key
    heads than query heads, each serves H / H_kv neighbouring query heads.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def write(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """The cache [B, H, S, D] with new [B, H, T, D] at positions from start [B] on."""
    positions = start[:, None] + torch.arange(new.shape[2], device=new.device)  # [B, T]
    index = positions[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
    return cache.scatter(2, index, new)

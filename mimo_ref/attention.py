"""Scaled dot-product attention: the one place that computes it.

Like `rotary.rotate` it is called through its module, so that the exporter can put a single operator
in its place while it traces.
"""

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q [B, H, T, D], k and v [B, H_kv, S, D] -> [B, H, T, D].

    mask bool, broadcast to [B, H, T, S], is true at visible keys; None shows all. With fewer key
    heads than query heads, each serves H / H_kv neighbouring query heads.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

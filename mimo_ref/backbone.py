"""Backbone: the Qwen2 model over patch positions, with its key-value cache."""

from functools import partial

import torch
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.config import LanguageModelConfig, Qwen2Config
from mimo_edge.mimo_ref.qwen2 import Qwen2
from torch import Tensor, nn


class KVCache:
    """Preallocated keys and values; every row has its own length.

    `lengths` [B] counts the positions written so far. Rows grow independently; `write` raises
    ValueError when a row would pass the capacity. Set `lengths` lower to forget positions.
    """

    def __init__(
        self,
        config: Qwen2Config,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # [layers, B, H_kv, S, D]
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def write(self, layer: int, positions: Tensor, valid: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k, v [B, H_kv, T, D] at positions [B, T] where valid [B, T]."""
        if (positions + 1)[valid].amax() > self.capacity:
            raise ValueError(f"the key-value cache is full at {self.capacity} positions")
        row, column = valid.nonzero(as_tuple=True)
        self.keys[layer, row, :, positions[row, column]] = k.transpose(1, 2)[row, column]
        self.values[layer, row, :, positions[row, column]] = v.transpose(1, 2)[row, column]


def visible_keys(positions: Tensor, n_keys: int, window: int | None) -> Tensor:
    """Which of n_keys a query at positions [B, T] sees: bool [B, 1, T, n_keys].

    `window` hides keys that are `window` or more positions back. Upstream applies the config's
    `sliding_window` even when `use_sliding_window` is false (transformers 4.49).
    """
    keys = torch.arange(n_keys, device=positions.device)
    visible = keys <= positions[..., None]
    if window is not None:
        visible = visible & (keys > positions[..., None] - window)
    return visible[:, None]


class Backbone(nn.Module):
    """Upstream's `model` (without the embedding) and `lm_head`."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen2(config.backbone)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x: Tensor, cache: KVCache, new: Tensor | None = None) -> Tensor:
        """Append positions x [B, T, D] to the cache and return their states [B, T, D].

        Rows may bring fewer than T positions: `new` [B] counts them from the left, and the states
        beyond are meaningless. Each row gets what it would get alone.
        """
        shape, (batch, time, _) = self.config.backbone, x.shape
        steps = torch.arange(time, device=x.device)
        positions = cache.lengths[:, None] + steps  # [B, T]
        new = torch.full((batch,), time, device=x.device) if new is None else new
        valid = steps < new[:, None]
        n_keys = int((cache.lengths + new).amax())
        mask = visible_keys(positions, n_keys, shape.window)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.write(layer, positions, valid, k, v)
            keys, values = cache.keys[layer, :, :, :n_keys], cache.values[layer, :, :, :n_keys]
            return attention.attention(q, keys, values, mask)

        cos, sin = rotary.tables(positions, shape.head_dim, shape.rope_theta, x.dtype)
        hidden = self.model(x, partial(rotary.rotate, cos=cos, sin=sin), attend)
        cache.lengths = cache.lengths + new
        return hidden

    def text_logits(self, hidden: Tensor) -> Tensor:
        """States [..., D] -> text scores [..., V]."""
        return self.lm_head(hidden)

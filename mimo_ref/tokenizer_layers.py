"""The pre-norm transformer layer of the audio tokenizer: encoder, decoder and vocoder use it."""

from functools import partial

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.qwen2 import Attend, Rotate
from torch import Tensor, nn


def valid_positions(lengths: Tensor, time: int) -> Tensor:
    """bool [B, time], true below each row's length."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def visible_keys(lengths: Tensor, time: int, causal: bool, window: tuple[int, int]) -> Tensor:
    """bool [B, 1, T, T]: keys inside the row and inside (left, right); -1 = no limit.

    A query always sees itself, so that rows of padding stay finite.
    """
    position = torch.arange(time, device=lengths.device)
    distance = position - position[:, None]  # key minus query, [T, T]
    left, right = window
    near = distance <= (0 if causal else right if right >= 0 else time)
    if left >= 0:
        near = near & (distance >= -left)
    return (near & valid_positions(lengths, time)[:, None] | (distance == 0))[:, None]


class Attention(nn.Module):
    """q, v and output have a bias, k has none."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layer: int, rotate: Rotate, attend: Attend) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, D]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(layer, rotate(q), rotate(k), v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TokenizerLayer(nn.Module):
    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, layer: int, rotate: Rotate, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), layer, rotate, attend)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


def masked_attend(lengths: Tensor, time: int, causal: bool, window: tuple[int, int]) -> Attend:
    """Attention over a padded batch whose rows end at `lengths` [B]."""
    mask = visible_keys(lengths, time, causal, window)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.attention(q, k, v, mask)

    return attend


def rotation(time: int, head_dim: int, theta: float, x: Tensor) -> Rotate:
    """Positions 0 .. time-1 in every row."""
    positions = torch.arange(time, device=x.device)[None]
    cos, sin = rotary.tables(positions, head_dim, theta, x.dtype)
    return partial(rotary.rotate, cos=cos, sin=sin)

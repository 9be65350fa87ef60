"""The Qwen2 transformer stack that backbone, patch encoder and patch decoder share.

A layer does not know about caches or masks: the caller gives it `rotate` (positions) and `attend`
(which keys are visible, where they are kept), so that one layer serves a cached decode step, a
bidirectional patch and a traced graph.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.config import Qwen2Config
from torch import Tensor, nn


class Attend(Protocol):
    """q [B, H, T, D], k and v [B, H_kv, T, D] of one layer -> [B, H, T, D]."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


Rotate = Callable[[Tensor], Tensor]


class RMSNorm(nn.Module):
    """Computed in float32 and rounded to the working dtype before the weight is applied."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # a traced graph without a weight would make its ones anew in every run
        ones = torch.ones(self.weight.shape, device=x.device)
        normal = F.rms_norm(x.float(), self.weight.shape, ones, self.eps)
        return self.weight * normal.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; q, k and v have a bias, the output has none."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_dim, kv_dim = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, q_dim)
        self.k_proj = nn.Linear(config.dim, kv_dim)
        self.v_proj = nn.Linear(config.dim, kv_dim)
        self.o_proj = nn.Linear(q_dim, config.dim, bias=False)

    def forward(self, x: Tensor, layer: int, rotate: Rotate, attend: Attend) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, T, D]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(layer, rotate(q), rotate(k), v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layer: int, rotate: Rotate, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, rotate, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2(nn.Module):
    """Layers and the final norm; embeddings and heads belong to the pieces."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rotate: Rotate, attend: Attend) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rotate, attend)
        return self.norm(x)

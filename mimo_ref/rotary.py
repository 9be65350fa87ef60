"""Rotary position embedding of the rotate-half kind, the same in every transformer of the model."""

import math

import torch
from torch import Tensor


def tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, head_dim / 2] of positions [B, T], computed in float32."""
    even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] * (1.0 / theta ** (even / head_dim))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def wrapped_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same tables for positions that grow for hours: angles in whole parts of a turn.

    A float32 angle is off by a percent after an hour. Here a position's angle is a multiple of
    2 ** -32 turns, an integer product that wraps exactly, so that two positions always differ by
    the same angle as any other two that are as far apart. Positions below 2 ** 31.
    """
    even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    turn = 2**32
    step = (theta ** (-even / head_dim) * (turn / (2 * math.pi))).round().long()
    angles = positions[..., None] * step
    part = angles - angles // turn * turn  # in [0, 2 ** 32)
    angles = part.float() * (2 * math.pi / turn)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, T, head_dim] by tables [B, T, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

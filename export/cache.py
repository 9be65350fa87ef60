"""The key-value cache of a traced graph: inputs that come out again, updated in place."""

import torch
from mimo_edge.export.operators import tensor_scatter
from mimo_edge.export.piece import Port
from mimo_edge.mimo_ref import attention
from torch import Tensor


class InPlaceCache:
    """`caches` are the keys of every layer, then the values of every layer, each [B, H_kv, S, D].

    New positions go to `start` [B]; `visible` bool [B, 1, T, S] says which a query sees. `updated`
    is what becomes of `caches`, in their order.
    """

    def __init__(self, caches: tuple[Tensor, ...], start: Tensor, visible: Tensor) -> None:
        self.updated, self._start, self._visible = list(caches), start, visible

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = layer, len(self.updated) // 2 + layer
        for index, new in ((keys, k), (values, v)):
            self.updated[index] = tensor_scatter(self.updated[index], new, self._start)
        return attention.attention(q, self.updated[keys], self.updated[values], self._visible)


def cache_ports(
    prefix: str, layers: int, dtype: torch.dtype, axes: tuple[str | int, ...]
) -> tuple[Port, ...]:
    """Ports in the order of `InPlaceCache`; the prefix is past on the way in, present out."""
    names = [f"{prefix}_{kind}_{layer}" for kind in ("keys", "values") for layer in range(layers)]
    return tuple(Port(name, dtype, axes) for name in names)

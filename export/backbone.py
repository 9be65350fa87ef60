"""Piece `backbone`: one graph for prefill and decode step, with the key-value cache in place.

Row b holds `past_lengths[b]` positions and brings `new_lengths[b]` of the T given, left-aligned.
All T are written, those beyond `new_lengths` as garbage that the next step overwrites and no query
sees; the cache must have room for them.
"""

from functools import partial

import torch
from mimo_edge.export.operators import tensor_scatter
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.backbone import visible_keys
from mimo_edge.mimo_ref.model import LanguageModel
from torch import Tensor, nn


class BackboneGraph(nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(
        self,
        embeddings: Tensor,
        past_lengths: Tensor,
        new_lengths: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """caches: keys of every layer, then values of every layer, each [B, H_kv, S, D]."""
        shape = self.backbone.config.backbone
        positions = past_lengths[:, None] + torch.arange(embeddings.shape[1])  # [B, T]
        mask = visible_keys(positions, caches[0].shape[2], shape.window)
        updated = list(caches)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys = tensor_scatter(caches[layer], k, past_lengths)
            values = tensor_scatter(caches[shape.layers + layer], v, past_lengths)
            updated[layer], updated[shape.layers + layer] = keys, values
            return attention.attention(q, keys, values, mask)

        dtype = embeddings.dtype
        cos, sin = rotary.tables(positions, shape.head_dim, shape.rope_theta, dtype)
        rotate = partial(lambda x: rotary.rotate(x, cos, sin))
        states = self.backbone.model(embeddings, rotate, attend)
        last = (new_lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        hidden = states.gather(1, last)[:, 0]  # [B, D]
        return (hidden, self.backbone.text_logits(hidden).float(), *updated)


def piece(model: LanguageModel, dtype: torch.dtype) -> Piece:
    config, shape = model.config, model.config.backbone
    cache = ("batch", shape.kv_heads, "capacity", shape.head_dim)

    def ports(prefix: str) -> tuple[Port, ...]:
        names = [f"{prefix}_{kind}_{n}" for kind in ("keys", "values") for n in range(shape.layers)]
        return tuple(Port(name, dtype, cache) for name in names)

    return Piece(
        name="backbone",
        module=BackboneGraph(model),
        inputs=(
            Port("embeddings", dtype, ("batch", "time", config.hidden_size)),
            Port("past_lengths", torch.int64, ("batch",)),
            Port("new_lengths", torch.int64, ("batch",)),
            *ports("past"),
        ),
        outputs=(
            Port("hidden", dtype, ("batch", config.hidden_size)),
            Port("logits", torch.float32, ("batch", config.vocab_size)),
            *ports("present"),
        ),
        owners={"backbone": model.backbone},
    )

"""Piece `backbone`: one graph for prefill and decode step, with the key-value cache in place.

Row b holds `past_lengths[b]` positions and brings `new_lengths[b]` of the T given, left-aligned.
All T are written, those beyond `new_lengths` as garbage that the next step overwrites and no query
sees; the cache must have room for them.
"""

from functools import partial

import torch
from mimo_edge.export.cache import InPlaceCache, cache_ports
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref import rotary
from mimo_edge.mimo_ref.backbone import visible_keys
from mimo_edge.mimo_ref.model import LanguageModel
from torch import Tensor, nn


class BackboneGraph(nn.Module):
    """The last product is the patch decoder's `hidden_states_downcast`: what a patch starts from
    is wanted once, and the patch decoder's own graph runs many times for it."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.backbone = model.backbone
        downcast = model.patch_decoder.hidden_states_downcast
        self.patch_decoder = nn.ModuleDict({"hidden_states_downcast": downcast})

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
        visible = visible_keys(positions, caches[0].shape[2], shape.window)
        cache = InPlaceCache(caches, past_lengths, visible)
        dtype = embeddings.dtype
        cos, sin = rotary.tables(positions, shape.head_dim, shape.rope_theta, dtype)
        rotate = partial(rotary.rotate, cos=cos, sin=sin)
        states = self.backbone.model(embeddings, rotate, cache.attend)
        last = (new_lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        hidden = states.gather(1, last)[:, 0]  # [B, D]
        local_hidden = self.patch_decoder["hidden_states_downcast"](hidden)
        return (local_hidden, self.backbone.text_logits(hidden).float(), *cache.updated)


def piece(model: LanguageModel, dtype: torch.dtype) -> Piece:
    config, shape = model.config, model.config.backbone
    cache = ("batch", shape.kv_heads, "capacity", shape.head_dim)
    return Piece(
        name="backbone",
        module=BackboneGraph(model),
        inputs=(
            Port("embeddings", dtype, ("batch", "time", config.hidden_size)),
            Port("past_lengths", torch.int64, ("batch",)),
            Port("new_lengths", torch.int64, ("batch",)),
            *cache_ports("past", shape.layers, dtype, cache),
        ),
        outputs=(
            Port("local_hidden", dtype, ("batch", config.local_dim)),
            Port("logits", torch.float32, ("batch", config.vocab_size)),
            *cache_ports("present", shape.layers, dtype, cache),
        ),
        owners={"backbone": model.backbone, "patch_decoder": model.patch_decoder},
    )

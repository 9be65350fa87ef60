"""Piece `patch_decoder`: one sub-step of a patch, sampling included.

A patch is `sub_steps` runs. `next` is the following run's x, and the keys and values stay in place;
randomness comes in as one uniform number per code.
"""

import math

import torch
import torch.nn.functional as F
from mimo_edge.export.cache import InPlaceCache, cache_ports
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref.backbone import visible_keys
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.sampling import sample
from torch import Tensor, nn


class PatchDecoderGraph(nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.patch_decoder = model.patch_decoder

    def forward(
        self,
        x: Tensor,
        sub_step: Tensor,
        uniforms: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """caches: keys of every layer, then values of every layer, each [B, H, S, D].

        Of the codes [B, K] those that the delay pattern does not draw at this sub-step are 0. One
        that it draws is -1 if its scores are NaN or infinite, and then goes on as code 0.
        """
        decoder = self.patch_decoder
        visible = visible_keys(sub_step[:, None], caches[0].shape[2], None)
        cache = InPlaceCache(caches, sub_step, visible)
        drawn: list[Tensor] = []  # [B, K]

        def choose(scores: list[Tensor]) -> Tensor:
            heads, ids = self._draw(scores, sub_step, uniforms, (temperature, top_k, top_p))
            nothing = uniforms.long()  # numbers below 1 are 0
            codes = nothing.scatter(1, heads, ids)
            drawn.append(torch.where(decoder.schedule.counts(sub_step), codes, 0))
            return drawn[0].clamp(min=0)

        _, following = decoder.sub_step(x, sub_step, cache.attend, choose)
        return (drawn[0], following, *cache.updated)

    def _draw(
        self,
        scores: list[Tensor],
        sub_step: Tensor,
        uniforms: Tensor,
        settings: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Some heads, and their codes in one go: which count, and maybe more.

        scores K x [B, V_k], uniforms [B, K], settings [B] -> heads and ids, each [B, M]. Sorting is
        most of the work, and no more than M of the K heads ever count at one sub-step. An id is -1
        if the sum of its head's scores is NaN or infinite, as it is if one of them is.
        """
        config, sizes = self.patch_decoder.config, [s.shape[-1] for s in scores]
        about = [
            (k, sum(sizes[:k]), sum(sizes[: k + 1]) - 1, config.speech_zeroemb_idx[k])
            for k in range(len(sizes))
        ]
        rows = [[about[k] for k in row] for row in self.patch_decoder.schedule.heads()]
        facts = torch.tensor(rows).transpose(1, 2).flatten(1)  # [sub-steps, 4 * M]
        heads, first, last, empty = F.embedding(sub_step, facts).chunk(4, dim=-1)  # [B, M]
        ids = torch.arange(max(sizes))
        places = first[..., None] + ids  # [B, M, V] in the scores of all heads
        beyond, removed = places > last[..., None], ids == empty[..., None]
        places = torch.minimum(places, last[..., None])  # short heads repeat their last score
        each = torch.cat(scores, dim=-1).float().gather(1, places.flatten(1))
        found = each.unflatten(1, (heads.shape[1], -1))
        finite = found.sum(-1).abs() <= torch.finfo(torch.float32).max
        temperature, top_k, top_p = (s[:, None] for s in settings)
        found = found.masked_fill(beyond, -math.inf)
        drawn = sample(found, uniforms.gather(1, heads), temperature, top_k, top_p, removed)
        return heads, torch.where(finite, drawn, -1)


def piece(model: LanguageModel, dtype: torch.dtype) -> Piece:
    config, shape = model.config, model.config.patch_decoder
    codes = ("batch", config.audio_channels)
    state = ("batch", config.local_dim)
    cache = ("batch", shape.kv_heads, model.patch_decoder.schedule.sub_steps, shape.head_dim)
    return Piece(
        name="patch_decoder",
        module=PatchDecoderGraph(model),
        inputs=(
            Port("x", dtype, state),
            Port("sub_step", torch.int64, ("batch",)),
            Port("uniforms", torch.float32, codes),
            Port("temperature", torch.float32, ("batch",)),
            Port("top_k", torch.int64, ("batch",)),
            Port("top_p", torch.float32, ("batch",)),
            *cache_ports("past", shape.layers, dtype, cache),
        ),
        outputs=(
            Port("codes", torch.int64, codes),
            Port("next", dtype, state),
            *cache_ports("present", shape.layers, dtype, cache),
        ),
        owners={"patch_decoder": model.patch_decoder},
    )

"""Piece `patch_decoder`: one sub-step of a patch, sampling included.

A patch is `sub_steps` runs. `next` is the following run's x, and the keys and values stay in place;
randomness comes in as one uniform number per code.
"""

import math

import torch
import torch.nn.functional as F
from mimo_edge.export.cache import InPlaceCache, cache_ports
from mimo_edge.export.operators import gather_rows
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
        finite: list[Tensor] = []  # [B, K]

        def choose(scores: list[Tensor]) -> Tensor:
            stacked = _stack(scores)  # [B, K, V]
            heads = F.embedding(sub_step, torch.tensor(decoder.schedule.heads()))  # [B, M]
            finite.append((stacked.abs() <= torch.finfo(torch.float32).max).all(-1))
            ids = self._draw(stacked, heads, uniforms, temperature, top_k, top_p)
            nothing = uniforms.long()  # numbers below 1 are 0
            codes = nothing.scatter(1, heads, ids)
            return torch.where(finite[0], codes, 0)

        codes, following = decoder.sub_step(x, sub_step, cache.attend, choose)
        drawn = decoder.schedule.counts(sub_step)
        codes = torch.where(drawn, torch.where(finite[0], codes, -1), 0)
        return (codes, following, *cache.updated)

    def _draw(
        self,
        scores: Tensor,
        heads: Tensor,
        uniforms: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> Tensor:
        """The codes of some heads in one go, which are those that count and maybe more.

        scores [B, K, V], heads [B, M], uniforms [B, K], settings [B] -> ids [B, M]. Sorting is most
        of the work, and no more than M of the K heads ever count at one sub-step.
        """
        config, ids = self.patch_decoder.config, torch.arange(scores.shape[-1])
        empties = torch.tensor(config.speech_zeroemb_idx)[:, None]
        padding = ids >= torch.tensor(config.speech_vocab_size)[:, None]  # [K, V]
        removed = ids == F.embedding(heads, empties)
        scores = gather_rows(scores.masked_fill(padding, -math.inf), heads)
        temperature, top_k, top_p = (s[:, None] for s in (temperature, top_k, top_p))
        drawn = gather_rows(uniforms, heads)
        return sample(scores, drawn, temperature, top_k, top_p, removed)


def _stack(scores: list[Tensor]) -> Tensor:
    """Scores [B, V_k] of each head -> float32 [B, K, V]: shorter heads repeat their last score."""
    sizes = [s.shape[-1] for s in scores]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    columns = [
        start + min(column, size - 1)
        for start, size in zip(starts, sizes, strict=True)
        for column in range(max(sizes))
    ]
    rows = torch.cat(scores, dim=-1).float().index_select(1, torch.tensor(columns))
    return rows.unflatten(-1, (len(sizes), max(sizes)))


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

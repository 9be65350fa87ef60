"""Patch decoder: one backbone state becomes the codes of a patch, drawn with the delay pattern."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.mimo_ref.delay import DelaySchedule
from mimo_edge.mimo_ref.qwen2 import Qwen2, Rotate
from torch import Tensor, nn

# scores [B, V_k] of each (codebook, frame) of a sub-step -> the ids [B] drawn from each
Choose = Callable[[list[Tensor], list[tuple[int, int]]], Sequence[Tensor]]


class PatchCache:
    """Keys and values of a single patch, by concatenation: at most `sub_steps` positions."""

    def __init__(self, layers: int) -> None:
        self.pairs: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The newest position sees all earlier ones, so no mask is needed."""
        past = self.pairs[layer]
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        self.pairs[layer] = (k, v)
        return attention.attention(q, k, v)


class PatchDecoder(nn.Module):
    """Upstream's `hidden_states_downcast`, `local_transformer` and heads.

    The speech embeddings are those of the patch encoder; `speech_embeddings_to_local` exists only
    if the two local stacks have different widths.
    """

    def __init__(self, config: LanguageModelConfig, speech_embeddings: nn.ModuleList) -> None:
        super().__init__()
        self.config = config
        self.schedule = DelaySchedule(config.delay_pattern, config.group_size)
        self.speech_embeddings = speech_embeddings
        self.hidden_states_downcast = nn.Linear(config.hidden_size, config.local_dim, bias=False)
        self.local_transformer = Qwen2(config.patch_decoder)
        self.local_transformer_lm_heads = nn.ModuleList(
            nn.Linear(config.local_dim, n, bias=False) for n in config.speech_vocab_size
        )
        self.speech_embeddings_to_local = (
            nn.Linear(config.input_local_dim, config.local_dim, bias=False)
            if config.input_local_dim != config.local_dim
            else None
        )

    def embed(self, codebook: int, ids: Tensor) -> Tensor:
        embedded = self.speech_embeddings[codebook](ids)
        if self.speech_embeddings_to_local is None:
            return embedded
        return self.speech_embeddings_to_local(embedded)

    def sub_step_rotate(self, sub_step: int, x: Tensor) -> Rotate:
        shape = self.config.patch_decoder
        position = torch.full((1, 1), sub_step, device=x.device)
        cos, sin = rotary.tables(position, shape.head_dim, shape.rope_theta, x.dtype)
        return partial(rotary.rotate, cos=cos, sin=sin)

    def forward(self, local_hidden: Tensor, choose: Choose) -> Tensor:
        """local_hidden [B, D_local] = hidden_states_downcast(state) -> codes [B, G, K] int64.

        Sub-step 0 sees the backbone's state, every later one the sum of the codes just drawn.
        """
        cache = PatchCache(self.config.local_layers)
        drawn: dict[tuple[int, int], Tensor] = {}
        x = local_hidden[:, None]  # [B, 1, D_local]
        for sub_step in range(self.schedule.sub_steps):
            rotate = self.sub_step_rotate(sub_step, x)
            state = self.local_transformer(x, rotate, cache.attend)[:, 0]
            x = torch.zeros_like(x)
            draws = self.schedule.draws(sub_step)
            scores = [self.local_transformer_lm_heads[k](state) for k, _ in draws]
            for (codebook, frame), ids in zip(draws, choose(scores, draws), strict=True):
                drawn[codebook, frame] = ids
                x = x + self.embed(codebook, ids)[:, None]
        codebooks, frames = range(len(self.schedule.delays)), range(self.schedule.group_size)
        return torch.stack(
            [torch.stack([drawn[k, g] for k in codebooks], dim=-1) for g in frames], dim=1
        )

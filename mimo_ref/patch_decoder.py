"""Patch decoder: one backbone state becomes the codes of a patch, drawn with the delay pattern."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.mimo_ref.delay import DelaySchedule
from mimo_edge.mimo_ref.qwen2 import Attend, Qwen2
from torch import Tensor, nn

# scores [B, V_k] of each (codebook, frame) of a sub-step -> the ids [B] drawn from each
Choose = Callable[[list[Tensor], list[tuple[int, int]]], Sequence[Tensor]]
# scores [B, V_k] of all K heads -> ids [B, K]
ChooseAll = Callable[[list[Tensor]], Tensor]


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
        return self._to_local(self.speech_embeddings[codebook](ids))

    def sub_step(
        self, x: Tensor, sub_step: Tensor, attend: Attend, choose: ChooseAll
    ) -> tuple[Tensor, Tensor]:
        """One sub-step: x [B, D_local], sub_step [B] -> codes [B, K] and the next sub-step's x.

        `attend` sees the keys of the sub-steps before it. All heads give scores and `choose` draws
        from all; only the codes that the delay pattern draws here make the next x.
        """
        shape = self.config.patch_decoder
        cos, sin = rotary.tables(sub_step[:, None], shape.head_dim, shape.rope_theta, x.dtype)
        rotate = partial(rotary.rotate, cos=cos, sin=sin)
        state = self.local_transformer(x[:, None], rotate, attend)[:, 0]
        codes = choose([head(state) for head in self.local_transformer_lm_heads])
        each = zip(self.speech_embeddings, codes.split(1, dim=1), strict=True)
        embedded = self._to_local(torch.cat([table(ids) for table, ids in each], dim=1))
        counts = self.schedule.counts(sub_step)[..., None]
        parts = torch.where(counts, embedded, 0).split(1, dim=1)  # K x [B, 1, D_local]
        return codes, sum(parts[1:], parts[0])[:, 0]  # in upstream's order

    def forward(self, local_hidden: Tensor, choose: Choose) -> Tensor:
        """local_hidden [B, D_local] = hidden_states_downcast(state) -> codes [B, G, K] int64.

        Sub-step 0 sees the backbone's state, every later one the sum of the codes just drawn.
        """
        cache = PatchCache(self.config.local_layers)
        batch, x = len(local_hidden), local_hidden
        patch = torch.zeros(
            (batch, self.schedule.group_size, len(self.schedule.delays)),
            dtype=torch.long,
            device=x.device,
        )

        def choose_drawn(draws: list[tuple[int, int]], scores: list[Tensor]) -> Tensor:
            """Only what the pattern draws is asked for; the rest stays 0 and is not read."""
            codes = torch.zeros_like(patch[:, 0])
            chosen = choose([scores[k] for k, _ in draws], draws)
            for (codebook, frame), ids in zip(draws, chosen, strict=True):
                codes[:, codebook] = patch[:, frame, codebook] = ids
            return codes

        for step in range(self.schedule.sub_steps):
            now = torch.full((batch,), step, device=x.device)
            drawn = partial(choose_drawn, self.schedule.draws(step))
            _, x = self.sub_step(x, now, cache.attend, drawn)
        return patch

    def _to_local(self, embedded: Tensor) -> Tensor:
        if self.speech_embeddings_to_local is None:
            return embedded
        return self.speech_embeddings_to_local(embedded)

"""The generation loop: a prompt grid grows one patch at a time.

Every generated text id other than `empty_id` brings a patch of empty codes; the patch decoder runs
only for `empty_id`. Lengths and limits count patches, the prompt included.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.sampling import sample
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p outside (0, 1] are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __call__(self, scores: Tensor, uniform: Tensor, removed: Tensor) -> Tensor:
        """scores [B, V], uniform [B], removed bool [V] -> ids [B]"""
        batch = scores.shape[0]
        return sample(
            scores,
            uniform,
            torch.full((batch,), self.temperature),
            torch.full((batch,), self.top_k),
            torch.full((batch,), self.top_p),
            removed,
        )


@dataclass(frozen=True)
class Limits:
    """When to stop. The two numbers count the whole grid, as upstream's stopper does."""

    max_patches: int
    min_patches: int = 0
    stop_ids: frozenset[int] = frozenset()


# step -> uniform numbers [1 + G * K] of that step: the text id's, then the codes' in frame order
Noise = Callable[[int], Tensor]


def removed_ids(vocabulary: int, ids: frozenset[int] | set[int]) -> Tensor:
    """bool [vocabulary], true at ids"""
    removed = torch.zeros(vocabulary, dtype=torch.bool)
    removed[list(ids)] = True
    return removed


def draw_patch(
    model: LanguageModel, hidden: Tensor, uniforms: Tensor, sampling: Sampling
) -> Tensor:
    """States [B, D] and uniforms [B, G, K] -> codes [B, G, K]; the empty code is never drawn."""
    empties = model.config.speech_zeroemb_idx

    def choose(scores: list[Tensor], draws: list[tuple[int, int]]) -> list[Tensor]:
        return [
            sampling(s, uniforms[:, g, k], removed_ids(s.shape[-1], {empties[k]}))
            for s, (k, g) in zip(scores, draws, strict=True)
        ]

    return model.patch_decoder(model.patch_decoder.hidden_states_downcast(hidden), choose)


@torch.inference_mode()
def generate(
    model: LanguageModel,
    grid: Tensor,
    limits: Limits,
    noise: Noise | None = None,
    text: Sampling = Sampling(),
    audio: Sampling = Sampling(),
    speaks: bool = True,
) -> Iterator[Tensor]:
    """Yield the patches [1 + K, G] that follow grid [1 + K, P * G], the stop patch included.

    A model that only listens (`speaks` false) draws no codes: its patches of speech are empty.

    Raises ValueError if the prompt already fills `limits.max_patches`.
    """
    config = model.config
    group, channels = config.group_size, config.audio_channels
    length = grid.shape[-1] // group
    if length >= limits.max_patches:
        raise ValueError(f"the prompt has {length} patches, the limit is {limits.max_patches}")
    cache = KVCache(config.backbone, 1, limits.max_patches, model.backbone.lm_head.weight.dtype)
    empty = torch.tensor(config.speech_zeroemb_idx)
    stops = removed_ids(config.vocab_size, limits.stop_ids)

    new = grid
    for step in range(limits.max_patches - length):
        hidden = model(new[None], cache)[:, -1]  # [B, D]
        uniform = noise(step) if noise else torch.zeros(1 + group * channels)
        too_short = length + step < limits.min_patches
        scores = model.backbone.text_logits(hidden)
        text_id = int(text(scores, uniform[:1], stops if too_short else torch.zeros_like(stops)))
        codes = empty[:, None].expand(-1, group)  # [K, G]
        if speaks and text_id == model.empty_id:
            codes = draw_patch(model, hidden, uniform[1:].view(1, group, channels), audio)[0].T
        new = torch.cat((torch.full((1, group), text_id), codes))
        yield new
        if text_id in limits.stop_ids and length + step + 1 >= limits.min_patches:
            return

"""Choosing an id from scores, with the randomness as an input.

Order as upstream: temperature, top_k, top_p, then removal of ids. The functions are traceable, so
the exported graphs run exactly this code. All computation is in float32.
"""

import torch
from torch import Tensor


def filter_scores(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Scores [..., V] scaled and filtered; removed ids are -inf.

    temperature, top_k (int64) and top_p are [...]. temperature 0 leaves the scale alone (the caller
    is greedy), top_k <= 0 and top_p outside (0, 1] are off. Ties with the last kept id are kept.
    """
    vocabulary = scores.shape[-1]
    temperature, top_k, top_p = temperature[..., None], top_k[..., None], top_p[..., None]
    scores = scores.float() / torch.where(temperature > 0, temperature, 1.0)
    ascending = torch.topk(scores, vocabulary, largest=False).values  # [..., V]

    lowest = ascending[..., :1]
    ranks = torch.arange(vocabulary, device=scores.device)
    is_kth = ranks == vocabulary - top_k.clamp(1, vocabulary)
    kth = torch.where(is_kth, ascending, -torch.inf).amax(-1, keepdim=True)
    kept_from = torch.where(top_k > 0, kth, lowest)  # [..., 1]

    survivors = ascending.masked_fill(ascending < kept_from, -torch.inf)
    cumulative = survivors.softmax(-1).cumsum(-1)
    kept = (cumulative > 1.0 - top_p) | (ranks == vocabulary - 1)
    nucleus_from = torch.where(kept, survivors, torch.inf).amin(-1, keepdim=True)
    kept_from = torch.where((top_p > 0) & (top_p <= 1), nucleus_from, kept_from)
    return scores.masked_fill(scores < kept_from, -torch.inf)


def remove(scores: Tensor, removed: Tensor, filtered: Tensor) -> Tensor:
    """`filtered` without the ids where `removed` [V] or [..., V] is true.

    Where that leaves nothing (upstream then raises, or returns id 0 when greedy), the best id of
    the unfiltered scores that is not removed stays.
    """
    allowed = scores.float().masked_fill(removed, -torch.inf)
    best = allowed.masked_fill(allowed < allowed.amax(-1, keepdim=True), -torch.inf)
    left = filtered.masked_fill(removed, -torch.inf)
    return torch.where(left.amax(-1, keepdim=True) > -torch.inf, left, best)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Inverse CDF in id order: scores [..., V], uniform [...] in [0, 1) -> ids [...] int64."""
    probabilities = scores.softmax(-1)
    cumulative = probabilities.cumsum(-1)
    ids = torch.arange(scores.shape[-1], device=scores.device)
    target = uniform.float()[..., None] * cumulative[..., -1:]
    chosen = torch.where(cumulative > target, ids, scores.shape[-1]).amin(-1)
    # rounding can push the target to the very end: stay on the last id that is possible
    last = torch.where(probabilities > 0, ids, -1).amax(-1)
    return torch.minimum(chosen, last)


def sample(
    scores: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    removed: Tensor,
) -> Tensor:
    """One id for each scores [..., V]: uniform [...] -> [...].

    The settings are [...] and `removed` bool [..., V], or of a shape that expands to these. Where
    temperature is 0 the choice is greedy; the lowest id wins a tie.
    """
    filtered = filter_scores(scores, temperature, top_k, top_p)
    candidates = remove(scores, removed, filtered)
    return torch.where(temperature > 0, draw(candidates, uniform), candidates.argmax(-1))

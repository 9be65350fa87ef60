"""Choosing an id from scores, with the randomness as an input.

Order as upstream: temperature, top_k, top_p, then removal of ids. The functions are traceable, so
the exported graphs run exactly this code, and each look at all scores is a node of theirs. All
computation is in float32.
"""

import torch
from torch import Tensor


def scale(scores: Tensor, temperature: Tensor) -> Tensor:
    """Scores [..., V] by temperature [...]; 0 leaves them alone (the caller is greedy)."""
    return scores.float() / torch.where(temperature > 0, temperature, 1.0)[..., None]


def kept_from(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The lowest of the scaled scores [..., V] that top_k and top_p keep, [..., 1].

    top_k (int64) and top_p are [...]. top_k <= 0 and top_p outside (0, 1] are off. Infinite where
    top_p is too small for any: the best is kept all the same, which is left to the caller.
    """
    vocabulary = scaled.shape[-1]
    ascending = torch.topk(scaled, vocabulary, largest=False).values  # [..., V]
    place = torch.where(top_k > 0, vocabulary - top_k, 0).clamp(min=0)
    kth = ascending.gather(-1, place.expand(scaled.shape[:-1])[..., None])
    survivors = ascending.masked_fill(ascending < kth, -torch.inf)
    cumulative = survivors.softmax(-1).cumsum(-1)
    dropped = torch.where(top_p > 0, 1.0 - top_p, -1.0)[..., None]  # this much of the mass
    nucleus = torch.where(cumulative > dropped, ascending, torch.inf).amin(-1, keepdim=True)
    return torch.maximum(kth, nucleus)


def filter_scores(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Scores [..., V] scaled and filtered; removed ids are -inf. Ties with the last kept id are
    kept. temperature, top_k (int64) and top_p are [...]."""
    scaled = scale(scores, temperature)
    return _at_least(scaled, kept_from(scaled, top_k, top_p))


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Inverse CDF in id order: scores [..., V], uniform [...] in [0, 1) -> ids [...] int64."""
    probabilities = scores.softmax(-1)
    cumulative = probabilities.cumsum(-1)
    vocabulary = scores.shape[-1]
    # as floats, which are reduced faster, and are exact here
    ids = torch.arange(vocabulary, device=scores.device, dtype=torch.float32)
    target = uniform.float()[..., None] * cumulative[..., -1:]
    chosen = torch.where(cumulative > target, ids, float(vocabulary)).amin(-1)
    # rounding can push the target to the very end: stay on the last id that is possible
    last = torch.where(probabilities > 0, ids, -1.0).amax(-1)
    return torch.minimum(chosen, last).long()


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
    temperature is 0 the choice is greedy; the lowest id wins a tie. Where removal leaves nothing
    (upstream then raises, or returns id 0 when greedy), the best id that is not removed is drawn.
    """
    scaled, drawn = scale(scores, temperature), temperature > 0
    allowed = scaled.masked_fill(removed, -torch.inf)
    # greedy keeps the best alone, and what ties with it: 0 draws the first of them
    kept = torch.where(drawn[..., None], kept_from(scaled, top_k, top_p), torch.inf)
    return draw(_at_least(allowed, kept), torch.where(drawn, uniform, 0.0))


def _at_least(scores: Tensor, kept: Tensor) -> Tensor:
    """Scores [..., V] without those below `kept` [..., 1]; the best stays."""
    lowest = torch.minimum(kept, scores.amax(-1, keepdim=True))
    return scores.masked_fill(scores < lowest, -torch.inf)

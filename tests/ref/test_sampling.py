import numpy as np
import pytest
import torch
from mimo_edge.mimo_ref.sampling import draw, filter_scores, sample
from mimo_edge.parity import tolerances
from torch import Tensor

from tests import check
from tests.golden import Golden, prefixes


def settings(case: dict[str, float], rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """temperature, top_k, top_p of an upstream sampler; what it leaves out is off."""
    return (
        torch.full((rows,), float(case.get("temperature", 1.0))),
        torch.full((rows,), int(case.get("top_k", 0))),
        torch.full((rows,), float(case.get("top_p", 0.0))),
    )


def without(scores: Tensor, ids: list[int]) -> Tensor:
    return scores.index_fill(-1, torch.tensor(ids), -torch.inf)


def test_golden(golden: Golden) -> None:
    arrays = golden.npz("sampler.npz")
    removed = arrays["removed"].tolist()
    checked = 0
    for kind in prefixes(arrays, ".logits"):
        scores = torch.tensor(arrays[f"{kind}.logits"])
        for index, case in enumerate(golden.info["sampler_cases"]):
            name = f"{kind}.case{index}"
            processed = filter_scores(scores, *settings(case)).numpy()
            if f"{name}.processed" in arrays:
                expected = arrays[f"{name}.processed"]
                check.equal(np.isinf(processed), np.isinf(expected), f"{name} -inf pattern")
                kept = np.isfinite(expected)
                np.testing.assert_allclose(
                    processed[kept], expected[kept], rtol=tolerances.SAMPLER_RELATIVE, err_msg=name
                )
                checked += 1
            if f"{name}.greedy" in arrays:
                check.equal(processed.argmax(-1), arrays[f"{name}.greedy"], f"{name}.greedy")
                greedy = without(torch.tensor(processed), removed).argmax(-1)
                check.equal(greedy, arrays[f"{name}.greedy_removed"], f"{name}.greedy_removed")
            if f"{name}.probs_removed_3_5" in arrays:
                probabilities = without(torch.tensor(processed), [3, 5]).softmax(-1)
                expected = arrays[f"{name}.probs_removed_3_5"]
                check.close(probabilities, expected, tolerances.PROBABILITIES, name)
    assert checked


def test_golden_draws(golden: Golden) -> None:
    """`sample` as a whole: the middle of each id's share of upstream's probabilities draws it."""
    arrays, checked = golden.npz("sampler.npz"), 0
    for name in prefixes_of_probabilities(arrays):
        kind, _, index = name.partition(".case")
        probabilities = torch.tensor(arrays[f"{name}.probs_removed_3_5"][0]).double()
        ids = (probabilities > 1e-4).nonzero()[:, 0]
        middle = (probabilities.cumsum(0) - probabilities / 2)[ids].float()
        scores = torch.tensor(arrays[f"{kind}.logits"])
        removed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        removed[[3, 5]] = True
        case = settings(golden.info["sampler_cases"][int(index)], len(ids))
        drawn = sample(scores.expand(len(ids), -1), middle, *case, removed)
        check.equal(drawn, ids.numpy(), name)
        checked += 1
    assert checked


def prefixes_of_probabilities(arrays: dict[str, np.ndarray]) -> list[str]:
    suffix = ".probs_removed_3_5"
    return [name.removesuffix(suffix) for name in arrays if name.endswith(suffix)]


@pytest.mark.parametrize(
    "case",
    [{"temperature": 0.9, "top_p": 0.95}, {"temperature": 2.5, "top_k": 7, "top_p": 0.8}, {}],
)
def test_distribution_equals_upstream(case: dict[str, float]) -> None:
    """Many draws by inverse CDF against the probabilities that upstream gives multinomial."""
    draws, vocabulary, removed = 40_000, 65, 64
    scores = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
    # upstream's order, written again from its description
    expected = scores / case.get("temperature", 1.0)
    if "top_k" in case:
        expected[expected < expected.topk(case["top_k"]).values[:, -1:]] = -torch.inf
    if "top_p" in case:
        ascending, order = expected.sort()
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - case["top_p"]
        drop[:, -1] = False
        expected[:, order[drop]] = -torch.inf
    expected[:, removed] = -torch.inf
    expected = expected.softmax(-1)[0]

    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(vocabulary) == removed
    ids = sample(scores.expand(draws, -1), uniform, *settings(case, draws), mask)
    counts = torch.bincount(ids, minlength=vocabulary) / draws
    assert (counts[expected == 0] == 0).all(), "drew an id that upstream cannot draw"
    total_variation = (counts - expected).abs().sum() / 2
    # the sampling error of a distribution over n ids is about sqrt(n / draws) / 2
    assert total_variation < (vocabulary / draws) ** 0.5


def test_draw_is_the_inverse_cdf() -> None:
    scores = torch.tensor([[0.1, 0.0, 0.2, 0.7]]).log()
    uniforms = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 1 - 2**-24])
    ids = draw(scores.expand(len(uniforms), -1), uniforms)
    assert ids.tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_leaves_the_support() -> None:
    """The largest uniform number and a candidate list that ends early: rounding must not escape."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, 129, generator=generator)
    scores[:, 100:] = -torch.inf
    assert draw(scores, torch.full((2000,), 1 - 2**-24)).max() < 100


def test_rows_have_their_own_settings() -> None:
    scores = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(3, -1)
    uniform = torch.tensor([0.999, 0.999, 0.999])
    temperature = torch.tensor([0.0, 1.0, 1.0])
    top_k, top_p = torch.tensor([0, 1, 0]), torch.tensor([1.0, 1.0, 1.0])
    ids = sample(scores, uniform, temperature, top_k, top_p, torch.zeros(4, dtype=torch.bool))
    assert ids.tolist() == [1, 1, 3]


def test_nothing_left_keeps_the_best_allowed() -> None:
    """Upstream raises, or returns id 0, when the removed id was the only candidate."""
    scores, removed = torch.tensor([[0.0, 5.0, 3.0]]), torch.tensor([False, True, False])
    for case in ({"top_k": 1}, {"top_p": 0.5}, {"top_k": 1, "temperature": 0.0}):
        for uniform in (0.0, 0.5, 1 - 2**-24):
            ids = sample(scores, torch.tensor([uniform]), *settings(case), removed)
            assert ids.item() == 2, case


def test_settings_at_their_edges() -> None:
    """What is off, and what is too small to leave anything; a greedy tie, by any number."""
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0]]).repeat(6, 1)
    top_k = torch.tensor([0, -1, 4, 100, 0, 1])
    top_p = torch.tensor([0.0, 1.5, 1.0, -1.0, 1e-9, 0.0])
    filtered = filter_scores(scores, torch.ones(6), top_k, top_p)
    assert (filtered[:4] == scores[:4]).all()
    best = torch.tensor([False, True, True, False])
    assert ((filtered[4:] > -torch.inf) == best).all()
    none = torch.zeros(4, dtype=torch.bool)
    greedy = sample(scores, torch.full((6,), 0.99), torch.zeros(6), top_k, top_p, none)
    assert greedy.tolist() == [1] * 6

"""Codebooks learned by moving averages: they find clusters, and the dead rise."""

import torch
from mimo_edge.mimo_ref.rvq import ResidualVectorQuantizer
from mimo_edge.scripts.nano.codebooks import CodebookTrainer, nearest
from torch import Tensor


def clusters(generator: torch.Generator, count: int = 256) -> Tensor:
    """Points [count, 2] near the corners of a square."""
    corners = torch.tensor([[4.0, 4.0], [4.0, -4.0], [-4.0, 4.0], [-4.0, -4.0]])
    picks = torch.randint(4, (count,), generator=generator)
    return corners[picks] + 0.1 * torch.randn(count, 2, generator=generator)


def all_depths(rows: int) -> Tensor:
    return torch.full((rows,), 99)


def test_k_means_finds_the_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    quantizer = ResidualVectorQuantizer((8, 4), 2)
    CodebookTrainer(quantizer).initialise(clusters(generator), generator)
    points = clusters(generator)
    found = quantizer.decode(quantizer.encode(points[None]))[0]
    assert (found - points).norm(dim=1).mean() < 0.2


def test_dead_codes_are_renewed_from_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    quantizer = ResidualVectorQuantizer((12,), 2)
    trainer = CodebookTrainer(quantizer, decay=0.8)
    with torch.no_grad():  # one code in the middle of everything, the others out of reach
        quantizer.codebooks[0].fill_(900.0)
        quantizer.codebooks[0][0] = 0.0
    trainer.sums = [quantizer.codebooks[0].clone()]
    renewed = 0
    for _ in range(60):
        points = clusters(generator)
        _, _, codes = trainer.quantise(points[None], all_depths(1))
        renewed += trainer.update(points, codes[0], generator)
    assert renewed >= 11
    points = clusters(generator)
    codes = quantizer.encode(points[None])[0, 0]
    assert len(codes.unique()) >= 8
    assert (quantizer.codebooks[0][codes] - points).norm(dim=1).mean() < 0.2


def test_quantise_agrees_with_the_reference_and_is_straight_through() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer((8, 8, 8), 3)
    trainer = CodebookTrainer(quantizer)
    x = torch.randn(2, 5, 3, requires_grad=True)
    trainer.initialise(torch.randn(100, 3), torch.Generator().manual_seed(0))
    out, commitment, codes = trainer.quantise(x, torch.tensor([3, 1]))
    assert torch.equal(codes, quantizer.encode(x))
    torch.testing.assert_close(out[0], quantizer.decode(codes[:1])[0])
    torch.testing.assert_close(out[1], quantizer.decode(codes[1:, :1])[0])
    (gradient,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(x))
    assert commitment > 0
    assert torch.autograd.grad(commitment, x)[0].abs().sum() > 0


def test_nearest_takes_the_closest() -> None:
    book = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert nearest(torch.tensor([[0.9, 5.0], [1.1, -5.0]]), book).tolist() == [0, 1]

"""Learning the codebooks: moving averages of what they are used for, and renewal of dead codes."""

from typing import Any

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.rvq import ResidualVectorQuantizer
from torch import Tensor


class CodebookTrainer:
    """Trains the codebooks of a `ResidualVectorQuantizer` in place, without gradients."""

    def __init__(
        self,
        quantizer: ResidualVectorQuantizer,
        decay: float = 0.99,
        dead_share: float = 0.03,
    ) -> None:
        """A code is dead when it is used less than `dead_share` of the mean use."""
        self.quantizer = quantizer.requires_grad_(False)
        self.decay, self.dead_share = decay, dead_share
        self.uses = [torch.ones(len(book)) for book in quantizer.codebooks]  # [size]
        self.sums = [book.detach().clone() for book in quantizer.codebooks]  # [size, D]

    @torch.no_grad()
    def initialise(self, vectors: Tensor, generator: torch.Generator, rounds: int = 8) -> None:
        """K-means, codebook after codebook, on vectors [M, D]."""
        residual = vectors.clone()
        for k, book in enumerate(self.quantizer.codebooks):
            picks = torch.randperm(len(residual), generator=generator)
            book.copy_(residual[picks.repeat(-(-len(book) // len(picks)))[: len(book)]])
            for _ in range(rounds):
                codes = nearest(residual, book)
                uses, sums = _gathered(residual, codes, len(book))
                book.copy_(torch.where(uses[:, None] > 0, sums / uses.clamp(min=1)[:, None], book))
            codes = nearest(residual, book)
            self.uses[k] = torch.full((len(book),), 1.0)
            self.sums[k] = book.detach().clone()
            residual = residual - book[codes]

    def quantise(self, x: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D], depths [B] (codebooks used for each row).

        Returns the quantised x with the gradient of x (straight through), the commitment loss, and
        the codes [B, K, T].
        """
        residual, total = x.detach(), torch.zeros_like(x)
        books, codes = list(self.quantizer.codebooks), []
        commitment = torch.zeros(())
        for k, book in enumerate(books):
            code = nearest(residual, book)  # [B, T]
            chosen = book[code]
            residual = residual - chosen
            total = total + chosen * (depths > k)[:, None, None]
            # what codebooks 0 .. k say together, pulled at from x
            commitment = commitment + F.mse_loss(x, x.detach() - residual) / len(books)
            codes.append(code)
        return x + (total - x).detach(), commitment, torch.stack(codes, dim=1)

    @torch.no_grad()
    def update(self, x: Tensor, codes: Tensor, generator: torch.Generator) -> int:
        """Move the codebooks towards x [M, D] with its codes [K, M]; returns the codes renewed."""
        residual, renewed = x, 0
        for k, (book, code) in enumerate(zip(self.quantizer.codebooks, codes, strict=True)):
            uses, sums = _gathered(residual, code, len(book))
            after = residual - book[code]
            self.uses[k].lerp_(uses, 1 - self.decay)
            self.sums[k].lerp_(sums, 1 - self.decay)
            mean_use = self.uses[k].mean()
            dead = self.uses[k] < self.dead_share * mean_use
            if dead.any():
                count = int(dead.sum())
                picks = torch.randint(len(residual), (count,), generator=generator)
                self.uses[k][dead] = mean_use
                self.sums[k][dead] = residual[picks] * mean_use
                renewed += count
            book.copy_(self.sums[k] / self.uses[k].clamp(min=1e-6)[:, None])
            residual = after
        return renewed

    def state_dict(self) -> dict[str, Any]:
        """What the codebooks themselves do not tell."""
        return {"uses": self.uses, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.uses, self.sums = state["uses"], state["sums"]


def nearest(x: Tensor, book: Tensor) -> Tensor:
    """x [..., D], book [size, D] -> the nearest code [...], as `ResidualVectorQuantizer.encode`."""
    return (book.square().sum(-1) - 2 * x @ book.T).argmin(-1)


def _gathered(x: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How often each code is used [size], and the sum of what it stands for [size, D]."""
    uses = torch.zeros(size).index_add_(0, codes, torch.ones(len(codes)))
    return uses, torch.zeros(size, x.shape[1]).index_add_(0, codes, x)

"""Residual vector quantiser: plain Euclidean codebooks, always in float32."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class ResidualVectorQuantizer(nn.Module):
    """Codebooks [n_q][size, D]. Upstream stores each as `embed`, beside training statistics."""

    PREFIX = "encoder.quantizer."
    UPSTREAM: ClassVar = {r"codebooks\.(\d+)": r"vq.layers.\1._codebook.embed"}

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.codebooks = nn.ParameterList(torch.zeros(size, dim) for size in sizes)

    def encode(self, x: Tensor, n_q: int | None = None) -> Tensor:
        """x [B, T, D] -> codes [B, n_q, T] int64. A codebook does not depend on later ones.

        A frame that is NaN or infinite, or too large to square, has no nearest code: it gets -1.
        """
        residual, codes = x.float(), []
        sound = residual.square().sum(-1) <= torch.finfo(torch.float32).max  # [B, T]
        for codebook in list(self.codebooks)[:n_q]:
            table = codebook.float()
            squares = residual.square().sum(-1, keepdim=True)
            distance = squares - 2 * residual @ table.T + table.square().sum(-1)
            code = (-distance).argmax(-1)
            residual = residual - table[code]
            codes.append(code)
        return torch.where(sound[:, None], torch.stack(codes, dim=1), -1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, n_q, T] (n_q may be fewer than the codebooks) -> [B, T, D] float32."""
        used = list(self.codebooks)[: codes.shape[1]]
        return torch.stack([t.float()[codes[:, k]] for k, t in enumerate(used)]).sum(0)

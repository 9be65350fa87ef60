"""Weights that are NaN or infinite, or become so in a narrower dtype, are named while they stream.

A bundle of them would run, and answer with rubbish.
"""

from pathlib import Path

import torch
from mimo_edge.mimo_ref.errors import CheckpointError
from torch import Tensor


def check_finite(cast: Tensor, original: Tensor, path: Path, name: str) -> None:
    """Raise CheckpointError unless all of `cast`, a part of the tensor `original`, is finite."""
    if torch.isfinite(cast).all():
        return
    wrong = int((~torch.isfinite(original)).sum())
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong} of {original.numel()} numbers of {name} are NaN or infinite. "
            "The file is damaged, or its training failed: download it again."
        )
    least, most = (float(end) for end in original.aminmax())
    dtype = str(cast.dtype).removeprefix("torch.")
    raise CheckpointError(
        f"{path}: {name} holds numbers from {least:g} to {most:g}, and {dtype} ends at "
        f"{torch.finfo(cast.dtype).max:g}. Export with --dtype bf16 or fp32."
    )

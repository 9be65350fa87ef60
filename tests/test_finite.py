"""What is NaN or infinite is refused, with the name of the tensor or of the piece."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mimo_edge.export.finite import check_finite as check_weights
from mimo_edge.export.weights import Region, WeightReader
from mimo_edge.mimo_ref.errors import CheckpointError
from mimo_edge.mimo_ref.rvq import ResidualVectorQuantizer
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.runtime.backends.finite import check_finite
from mimo_edge.runtime.bundle.errors import BundleError
from safetensors.torch import save_file

FILE = Path("model.safetensors")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_piece_that_overflows_is_named(bad: float) -> None:
    array = np.zeros((3, 4), np.float32)
    assert check_finite(array, "mel") is array
    array[2, 1] = bad
    with pytest.raises(BundleError, match=r"piece mel computed NaN or infinity: .*--dtype"):
        check_finite(array, "mel")


def test_codes_that_are_none() -> None:
    check_finite(np.zeros((2, 3), np.int64), "tokenizer_encoder")
    with pytest.raises(BundleError, match="piece tokenizer_encoder"):
        check_finite(np.array([[0, -1]]), "tokenizer_encoder")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_the_quantiser_says_so(bad: float) -> None:
    """Frames that are not finite get no code; the others get theirs."""
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer((8, 4), 6)
    for codebook in quantizer.codebooks:
        torch.nn.init.normal_(codebook)
    states = torch.randn(2, 5, 6)
    expected = quantizer.encode(states)
    assert expected.min() >= 0
    states[1, 3, 2] = bad
    codes = quantizer.encode(states)
    assert (codes[1, :, 3] == -1).all()
    others = torch.ones(2, 5, dtype=torch.bool)
    others[1, 3] = False
    assert torch.equal(codes.transpose(1, 2)[others], expected.transpose(1, 2)[others])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(bad: float) -> None:
    tensor = torch.ones(4, 3)
    check_weights(tensor.half(), tensor, FILE, "a.weight")
    tensor[1, 2] = bad
    with pytest.raises(CheckpointError, match=r"model.safetensors: 1 of 12 numbers of a.weight"):
        check_weights(tensor, tensor, FILE, "a.weight")


def test_a_weight_that_half_precision_cannot_hold() -> None:
    tensor = torch.tensor([1.0, -100000.0, 3.0])
    check_weights(tensor.bfloat16(), tensor, FILE, "a.weight")
    with pytest.raises(CheckpointError) as error:
        check_weights(tensor.half(), tensor, FILE, "a.weight")
    text = str(error.value)
    assert "a.weight holds numbers from -100000 to 3, and float16 ends at 65504" in text
    assert "--dtype bf16 or fp32" in text


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (float("nan"), torch.float32, "1 of 6 numbers of fc2.weight are NaN or infinite"),
        (1e5, torch.float16, "fc2.weight holds numbers from 0 to 100000"),
        (1e5, torch.bfloat16, None),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_looked_at_while_they_stream(
    tmp_path: Path, value: float, dtype: torch.dtype, says: str | None, transposed: bool
) -> None:
    tensor = torch.zeros(2, 3)
    tensor[1, 2] = value
    save_file({"fc2.weight": tensor}, tmp_path / FILE)
    origins: Any = SimpleNamespace(constants={}, sources={"fc2.weight": "fc2.weight"})
    shape = (3, 2) if transposed else (2, 3)
    region = Region("fc2.weight", dtype, shape, 0, 6 * dtype.itemsize, transposed)
    parts = WeightReader([TensorFiles(tmp_path)], origins).parts(region, lambda _: None)
    if says is None:
        assert sum(part.nbytes for part in parts) == region.bytes
        return
    with pytest.raises(CheckpointError, match=f"{tmp_path / FILE}: {says}"):
        list(parts)

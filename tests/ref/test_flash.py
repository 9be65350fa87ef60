"""The reference on flash-attn's kernels: on a stand-in that knows windows as they do, and no masks.

The kernels themselves need a GPU; what is ours is to ask them the right thing.
"""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mimo_edge.mimo_ref import attention, backbone, tokenizer_layers
from mimo_edge.mimo_ref.errors import MissingPackage
from mimo_edge.mimo_ref.flash import flash_attention, window
from torch import Tensor

sdpa = attention.attention


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, window_size: tuple[int, int]) -> Tensor:
    """q [B, T, H, D], k and v [B, S, H_kv, D]: the last query belongs to the last key."""
    own = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    keys = torch.arange(k.shape[1])
    left, right = window_size
    assert min(window_size) >= -1
    visible = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if left >= 0:
        visible &= keys >= own - left
    if right >= 0:
        visible &= keys <= own + right
    return sdpa(*(x.transpose(1, 2) for x in (q, k, v)), visible).transpose(1, 2)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn", fake)


def padded(lengths: list[int], time: int, causal: bool, sides: tuple[int, int]) -> Tensor:
    return tokenizer_layers.visible_keys(torch.tensor(lengths), time, causal, sides)


def grown(lengths: list[int], time: int, keys: int, left: int | None) -> Tensor:
    positions = torch.tensor(lengths)[:, None] + torch.arange(time)
    return backbone.visible_keys(positions, keys, left)


# mask, and how many queries of each row mean something
MASKS: dict[str, tuple[Tensor, list[int]]] = {
    "whole": (padded([9, 9], 9, False, (-1, -1)), [9, 9]),
    "padded": (padded([9, 4], 9, False, (-1, -1)), [9, 4]),
    "causal": (padded([9, 4], 9, True, (-1, -1)), [9, 4]),
    "vocoder": (padded([40, 7], 40, False, (4, 2)), [40, 7]),
    "causal window": (padded([20, 3], 20, True, (5, 0)), [20, 3]),
    "prefill": (grown([0, 0], 6, 6, None), [6, 6]),
    "one step": (grown([7, 2], 1, 8, None), [1, 1]),
    "rows of their own length": (grown([7, 2], 4, 11, None), [4, 4]),
    "more given than new": (grown([7, 2], 4, 9, None), [2, 4]),
    "sliding window": (grown([30, 12], 3, 33, 8), [3, 3]),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_masks_are_windows(flash: None, name: str, kv_heads: int) -> None:
    mask, valid = MASKS[name]
    generator, (rows, _, time, keys) = torch.Generator().manual_seed(0), mask.shape
    q, k, v = (
        torch.randn(rows, heads, count, 16, generator=generator).bfloat16()
        for heads, count in ((4, time), (kv_heads, keys), (kv_heads, keys))
    )
    expected = attention.attention(q, k, v, mask)
    with flash_attention():
        found = attention.attention(q, k, v, mask)
    assert attention.attention is sdpa
    for row, count in enumerate(valid):
        torch.testing.assert_close(found[row, :, :count], expected[row, :, :count])


def test_no_mask_is_all_keys(flash: None) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).half()
    with flash_attention():
        found = attention.attention(q, k, v)
    torch.testing.assert_close(found, sdpa(q, k, v))


def test_what_it_cannot_do(flash: None) -> None:
    holes = torch.ones(4, 4, dtype=torch.bool)
    holes[2, 1] = False
    for mask in (holes, torch.zeros(2, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="not a window"):
            window(mask)
    q: Any = torch.zeros(1, 1, 2, 8)
    with flash_attention(), pytest.raises(ValueError, match=r"not in torch\.float32"):
        attention.attention(q, q, q)
    assert attention.attention is sdpa


def test_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(MissingPackage, match="pip install --no-build-isolation"), flash_attention():
        pass
    assert attention.attention is sdpa

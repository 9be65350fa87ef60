"""The golden tests are alive: with one thing changed in the reference, they fail.

Each row changes the loaded models or the code for the length of one test, and runs the very tests
that hold the reference to the golden vectors, over every case of the folder.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import pytest
import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref import attention, rotary, sampling
from mimo_edge.mimo_ref.backbone import Backbone
from mimo_edge.mimo_ref.delay import DelaySchedule
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.patch_decoder import PatchDecoder
from mimo_edge.mimo_ref.patch_encoder import PatchEncoder
from mimo_edge.mimo_ref.qwen2 import Attention, RMSNorm
from mimo_edge.mimo_ref.tokenizer_decoder import UpSample
from mimo_edge.mimo_ref.vocoder import Vocoder
from torch import Tensor, nn

from tests.golden import Golden
from tests.ref import (
    test_language_model,
    test_patch_decoder,
    test_sampling,
    test_tokenizer_decoder,
    test_tokenizer_encoder,
)

Load = Callable[[str], LanguageModel]


@dataclass
class Subject:
    """What a row can change, and what its check reads."""

    golden: Golden
    tokenizer: AudioTokenizer
    load: Load
    patch: pytest.MonkeyPatch

    def modules(self, kind: type[nn.Module]) -> Iterable[nn.Module]:
        roots = (self.tokenizer, *map(self.load, self.golden.lm_names))
        return [module for root in roots for module in root.modules() if isinstance(module, kind)]

    def config(self, *owners: nn.Module | type[nn.Module], **changes: object) -> None:
        """Change the config that modules compute from; a class stands for all of its modules."""
        for owner in owners:
            for module in self.modules(owner) if isinstance(owner, type) else [owner]:
                self.patch.setattr(module, "config", replace(module.config, **changes))


def encoder(s: Subject) -> None:
    for case in s.golden.encoder_cases:
        test_tokenizer_encoder.test_encoder(s.golden, s.tokenizer, case)


def decoder(s: Subject) -> None:
    for case in s.golden.decoder_cases:
        test_tokenizer_decoder.test_decoder(s.golden, s.tokenizer, case)


def patch_encoder(s: Subject) -> None:
    for name in s.golden.lm_names:
        test_language_model.test_patch_encoder(s.golden, s.load, name)


def backbone(s: Subject) -> None:
    for name in s.golden.lm_names:
        test_language_model.test_forward(s.golden, s.load, name)


def patch_decoder(s: Subject) -> None:
    for name in s.golden.lm_names:
        test_patch_decoder.test_local(s.golden, s.load, name)


def sampler(s: Subject) -> None:
    test_sampling.test_golden_draws(s.golden)


CHECKS = (encoder, decoder, patch_encoder, backbone, patch_decoder, sampler)


def skip_after(offset: int | None) -> Callable[[Subject], None]:
    def mutate(s: Subject) -> None:
        layer = s.tokenizer.config.encoder_skip_layer_id
        moved = None if offset is None else layer + offset
        s.config(s.tokenizer.encoder, encoder_skip_layer_id=moved)

    return mutate


def vocoder_window(left: int, right: int) -> Callable[[Subject], None]:
    def mutate(s: Subject) -> None:
        window = s.tokenizer.config.vocoder_attn_window_size
        s.config(Vocoder, vocoder_attn_window_size=(window[0] + left, window[1] + right))

    return mutate


def interleaved_rope(s: Subject) -> None:
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        halves = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
        turned = rotate_half(halves, cos, sin)
        return torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)

    rotate_half = rotary.rotate
    s.patch.setattr(rotary, "rotate", rotate)


def tiled_heads(s: Subject) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        repeats = (1, q.shape[1] // k.shape[1], 1, 1)
        return grouped(q, k.repeat(repeats), v.repeat(repeats), mask)

    grouped = attention.attention
    s.patch.setattr(attention, "attention", attend)


def other_eps(kind: type[nn.Module]) -> Callable[[Subject], None]:
    def mutate(s: Subject) -> None:
        for module in s.modules(kind):
            s.patch.setattr(module, "eps", 1e-5 if module.eps == 1e-6 else 1e-6)

    return mutate


def no_bias(projection: str) -> Callable[[Subject], None]:
    def mutate(s: Subject) -> None:
        for module in s.modules(Attention):
            s.patch.setitem(getattr(module, projection)._parameters, "bias", None)

    return mutate


def tanh_gelu(s: Subject) -> None:
    s.patch.setattr(F, "gelu", partial(F.gelu, approximate="tanh"))


def norm_per_frame(s: Subject) -> None:
    def normalize(self: UpSample, x: Tensor, lengths: Tensor) -> Tensor:
        norm = self.norm
        by_frame = F.layer_norm(x.mT, (x.shape[1],), norm.weight, norm.bias, norm.eps)
        return by_frame.mT

    s.patch.setattr(UpSample, "normalize", normalize)


def trims_first_frame(s: Subject) -> None:
    """Rolled by one, what is trimmed on the right is the first frame."""
    up = s.tokenizer.decoder.dconv2
    convolve = up.conv.forward
    s.patch.setattr(up.conv, "forward", lambda x: convolve(x).roll(-up.trim, dims=-1))


def symmetric_hann(s: Subject) -> None:
    istft = s.tokenizer.decoder.vocoder.head.istft
    s.patch.setitem(istft._buffers, "window", torch.hann_window(istft.n_fft, periodic=False))


def zero_delays(s: Subject) -> None:
    for module in s.modules(PatchDecoder):
        schedule = module.schedule
        still = DelaySchedule((0,) * len(schedule.delays), schedule.group_size)
        s.patch.setattr(module, "schedule", still)


def removal_first(s: Subject) -> None:
    def sample(scores, uniform, temperature, top_k, top_p, removed):
        scores = scores.masked_fill(removed, -torch.inf)
        return filter_last(scores, uniform, temperature, top_k, top_p, removed)

    filter_last = sampling.sample
    s.patch.setattr(test_sampling, "sample", sample)


def top_p_first(s: Subject) -> None:
    def sample(scores, uniform, temperature, top_k, top_p, removed):
        none, off = torch.zeros_like(top_k), torch.zeros_like(top_p)
        nucleus = sampling.filter_scores(scores, torch.ones_like(temperature), none, top_p)
        return in_order(nucleus, uniform, temperature, top_k, off, removed)

    in_order = sampling.sample
    s.patch.setattr(test_sampling, "sample", sample)


# what is changed: the change, and the golden test that must notice
MUTATIONS: dict[str, tuple[Callable[[Subject], None], Callable[[Subject], None]]] = {
    "skip one layer early": (skip_after(-1), encoder),
    "skip one layer late": (skip_after(+1), encoder),
    "no skip": (skip_after(None), encoder),
    "causal encoder": (
        lambda s: s.config(s.tokenizer.encoder, encoder_causal=True),
        encoder,
    ),
    "interleaved RoPE, encoder": (interleaved_rope, encoder),
    "tanh gelu, encoder": (tanh_gelu, encoder),
    "LayerNorm eps, encoder": (other_eps(nn.LayerNorm), encoder),
    "interleaved RoPE, decoder": (interleaved_rope, decoder),
    "tanh gelu, decoder": (tanh_gelu, decoder),
    "decoder not causal": (
        lambda s: s.config(s.tokenizer.decoder, decoder_causal=False),
        decoder,
    ),
    "norm per frame": (norm_per_frame, decoder),
    "first frame trimmed": (trims_first_frame, decoder),
    "symmetric Hann": (symmetric_hann, decoder),
    "magnitude not clipped": (
        lambda s: s.patch.setattr("mimo_edge.mimo_ref.vocoder.MAX_MAGNITUDE", inf),
        decoder,
    ),
    "vocoder window longer": (vocoder_window(0, 1), decoder),
    "vocoder window shorter": (vocoder_window(-1, 0), decoder),
    "causal patch encoder": (
        lambda s: s.config(PatchEncoder, input_full_attention=False),
        patch_encoder,
    ),
    "rope_theta, patch encoder": (
        lambda s: s.config(PatchEncoder, local_rotary_base=1e4),
        patch_encoder,
    ),
    "interleaved RoPE, patch encoder": (interleaved_rope, patch_encoder),
    "rope_theta, backbone": (lambda s: s.config(Backbone, rope_theta=1e4), backbone),
    "interleaved RoPE, backbone": (interleaved_rope, backbone),
    "heads tiled": (tiled_heads, backbone),
    "RMSNorm eps": (other_eps(RMSNorm), backbone),
    "no q bias": (no_bias("q_proj"), backbone),
    "no k bias": (no_bias("k_proj"), backbone),
    "no v bias": (no_bias("v_proj"), backbone),
    "rope_theta, patch decoder": (
        lambda s: s.config(PatchDecoder, local_rotary_base=1e4),
        patch_decoder,
    ),
    "delays zero": (zero_delays, patch_decoder),
    "removal before the filters": (removal_first, sampler),
    "top_p before temperature": (top_p_first, sampler),
}


@pytest.fixture
def subject(
    golden: Golden, tokenizer: AudioTokenizer, load_lm: Load, monkeypatch: pytest.MonkeyPatch
) -> Subject:
    return Subject(golden, tokenizer, load_lm, monkeypatch)


@pytest.mark.parametrize("name", MUTATIONS)
def test_change_is_noticed(subject: Subject, name: str) -> None:
    mutate, notice = MUTATIONS[name]
    mutate(subject)
    with pytest.raises(AssertionError, match=r" > | differ"):
        notice(subject)


@pytest.mark.parametrize("notice", CHECKS, ids=lambda check: check.__name__)
def test_nothing_changed(subject: Subject, notice: Callable[[Subject], None]) -> None:
    notice(subject)

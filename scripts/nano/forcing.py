"""The language model on a whole grid at once, as training needs it.

The weights and modules are those of `mimo_ref`; only the loops over positions and sub-steps are
replaced by causal masks.
"""

from functools import partial

import torch
from mimo_edge.mimo_ref import rotary
from mimo_edge.mimo_ref.config import Qwen2Config
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.patch_decoder import PatchDecoder
from mimo_edge.mimo_ref.patch_encoder import PatchEncoder
from mimo_edge.mimo_ref.qwen2 import Qwen2
from torch import Tensor


def states(model: LanguageModel, grid: Tensor) -> list[Tensor]:
    """Grid [B, 1 + K, P * G] -> the states [B, P, D] after each layer of the backbone, the last
    after its norm too; the states at p speak of p + 1."""
    x = _patches(model.patch_encoder, *model.split_grid(grid))
    return _causal(model.backbone.model, model.config.backbone, x)


def code_scores(decoder: PatchDecoder, hidden: Tensor, codes: Tensor) -> list[Tensor]:
    """Backbone states [M, D] and the codes [M, K, G] that follow them -> K scores [M, G, V_k].

    Sub-step 0 sees the state, sub-step s + 1 the codes that the delay pattern draws at s: what
    `PatchDecoder.forward` does one by one, here all at once.
    """
    schedule = decoder.schedule
    inputs = [decoder.hidden_states_downcast(hidden)]
    embedded = [decoder.embed(k, codes[:, k]) for k in range(codes.shape[1])]  # K x [M, G, D]
    for sub_step in range(schedule.sub_steps - 1):
        draws = schedule.draws(sub_step)
        inputs.append(torch.stack([embedded[k][:, g] for k, g in draws]).sum(0))
    x = torch.stack(inputs, dim=1)  # [M, sub_steps, D]
    x = _causal(decoder.local_transformer, decoder.config.patch_decoder, x)[-1]
    group = schedule.group_size
    return [
        head(x[:, delay : delay + group])
        for head, delay in zip(decoder.local_transformer_lm_heads, schedule.delays, strict=True)
    ]


def _patches(encoder: PatchEncoder, text_ids: Tensor, codes: Tensor) -> Tensor:
    """`PatchEncoder.forward`, but its transformer runs on the patches of speech only."""
    is_speech = text_ids == encoder.empty_id  # [B, P]
    x = encoder.text_embedding(text_ids) * ~is_speech[..., None]
    if not is_speech.any():
        return x
    heard = codes[is_speech][None]  # [1, M, K, G]
    speech = encoder.sum_codes(is_speech[is_speech][None], heard)[0]  # [M, G, D]
    cos, sin = encoder.rotary_tables(speech.dtype, speech.device)
    rotate = partial(rotary.rotate, cos=cos, sin=sin)
    config = encoder.config
    visible = None if config.input_full_attention else _and_before(config.group_size)
    speech = encoder.encode_patches(speech, rotate, partial(_attend, visible=visible))
    speech = encoder.speech_group_downcast(speech.flatten(1)).to(x.dtype)  # [M, D]
    return x.masked_scatter(is_speech[..., None], speech)


def _causal(stack: Qwen2, shape: Qwen2Config, x: Tensor) -> list[Tensor]:
    """A stack over x [B, T, D], every position seeing itself and what is before it: the states
    after each layer, the last after the norm too."""
    steps = torch.arange(x.shape[1])
    cos, sin = rotary.tables(steps[None], shape.head_dim, shape.rope_theta, x.dtype)
    rotate = partial(rotary.rotate, cos=cos, sin=sin)
    attend = partial(_attend, visible=_and_before(x.shape[1]))
    found = []
    for layer in stack.layers:
        x = layer(x, 0, rotate, attend)  # `_attend` keeps nothing by layer
        found.append(x)
    return [*found[:-1], stack.norm(x)]


def _and_before(size: int) -> Tensor:
    """Bool [size, size]: each position sees itself and what is before it."""
    return torch.ones(size, size, dtype=torch.bool).tril()


def _attend(layer: int, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """`mimo_edge.mimo_ref.attention.attention`, written out.

    PyTorch's fused operator goes through thousands of rows of 4 and 11 positions one by one; in
    bfloat16 two products of matrices take a third to a half of its time, forward and backward.
    """
    shared = q.shape[1] // k.shape[1]  # query heads of a key head
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v

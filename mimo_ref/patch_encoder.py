"""Patch encoder: text ids and codes of a patch become one backbone position."""

from functools import partial
from typing import ClassVar

import torch
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.mimo_ref.qwen2 import Attend, Qwen2, Rotate
from torch import Tensor, nn


class PatchEncoder(nn.Module):
    """Upstream's text and speech embeddings, `input_local_transformer`, `speech_group_downcast`.

    A patch is speech if its text id is `empty_id`; then the text embedding is zero. In a text patch
    the codes do not matter. An empty code contributes nothing anywhere.
    """

    UPSTREAM: ClassVar = {"text_embedding.": "model.embed_tokens."}

    def __init__(self, config: LanguageModelConfig, empty_id: int) -> None:
        super().__init__()
        self.config = config
        self.empty_id = empty_id
        dim = config.input_local_dim
        self.text_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.speech_embeddings = nn.ModuleList(
            nn.Embedding(n, dim) for n in config.speech_vocab_size
        )
        self.input_local_transformer = Qwen2(config.patch_encoder)
        self.speech_group_downcast = nn.Linear(
            config.group_size * dim, config.hidden_size, bias=False
        )

    def sum_codes(self, is_speech: Tensor, codes: Tensor) -> Tensor:
        """is_speech [B, P], codes [B, P, K, G] -> summed embeddings [B, P, G, D_local]."""
        total = torch.zeros(())
        for k, (embedding, empty) in enumerate(
            zip(self.speech_embeddings, self.config.speech_zeroemb_idx, strict=True)
        ):
            code = codes[:, :, k]
            used = is_speech[..., None] & (code != empty)  # [B, P, G]
            # text patches may hold anything: look up a code that exists
            total = total + embedding(torch.where(used, code, empty)) * used[..., None]
        return total

    def encode_patches(self, x: Tensor, rotate: Rotate, attend: Attend) -> Tensor:
        """Every patch on its own: [B * P, G, D_local] -> [B * P, G, D_local]."""
        return self.input_local_transformer(x, rotate, attend)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Bidirectional inside the patch, by construction; causal only if the config says so."""
        if self.config.input_full_attention:
            return attention.attention(q, k, v)
        group = torch.arange(q.shape[2], device=q.device)
        return attention.attention(q, k, v, group <= group[:, None])

    def rotary_tables(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        shape = self.config.patch_encoder
        positions = torch.arange(self.config.group_size, device=device)[None]
        return rotary.tables(positions, shape.head_dim, shape.rope_theta, dtype)

    def forward(self, text_ids: Tensor, codes: Tensor) -> Tensor:
        """text_ids [B, P], codes [B, P, K, G] (both integer) -> backbone input [B, P, D]."""
        is_speech = text_ids == self.empty_id
        speech = self.sum_codes(is_speech, codes)
        cos, sin = self.rotary_tables(speech.dtype, speech.device)
        rotate = partial(rotary.rotate, cos=cos, sin=sin)
        speech = self.encode_patches(speech.flatten(0, 1), rotate, self.attend)
        return self.combine(text_ids, is_speech, speech)

    def combine(self, text_ids: Tensor, is_speech: Tensor, speech: Tensor) -> Tensor:
        """Add the encoded speech [B * P, G, D_local] to the text embedding -> [B, P, D]."""
        speech = speech.flatten(1).unflatten(0, is_speech.shape) * is_speech[..., None]
        text = self.text_embedding(text_ids) * ~is_speech[..., None]
        return text + self.speech_group_downcast(speech)
